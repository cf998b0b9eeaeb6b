"""Number of examples for each property test: 100, or the environment variable TEST_EXAMPLES."""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("TEST_EXAMPLES", "100"))

# decorates the property tests; generating examples may be slow on a busy machine
thorough = settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow],
)
