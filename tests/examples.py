"""How many examples each property is tried on: a few in a run, `TEST_EXAMPLES=10000` at will."""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("TEST_EXAMPLES", "100"))

thorough = settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow],
)
