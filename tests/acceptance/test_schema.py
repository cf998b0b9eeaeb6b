"""The API conforms to its schema.

The script `bench/schema.py` generates requests from the OpenAPI schema and checks the responses.
"""

import asyncio
import os
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "bench" / "schema.py"
CASES = 100
"""Requests that are generated, at least."""


async def test_cases_generated_from_the_schema_pass(database_url: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(SCRIPT), "--cases", str(CASES), "--seed", "1"),
        *("--database-url", database_url),
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[1] / "src")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
