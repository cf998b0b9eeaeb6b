"""The bare handler: a Litestar application that takes receipts and commits one by one.

Each receipt updates one row of a table by its primary key, over asyncpg, with a commit of its own.
There is no signature, no secret, no history and no count. `receipts.py` compares mailer with it.
"""

import argparse
import asyncio
from typing import Any

import asyncpg
import uvicorn
from litestar import Litestar, post

CREATE = """
    CREATE TABLE bare_receipt AS SELECT id, 'sent' AS status FROM generate_series(1, {count}) AS id
    """
ADD_KEY = "ALTER TABLE bare_receipt ADD PRIMARY KEY (id)"
UPDATE = "UPDATE bare_receipt SET status = $2 WHERE id = $1"


async def main(database_url: str, port: int, count: int) -> None:
    """Serve on a port of loopback until SIGTERM, with a table of `count` rows."""
    async with asyncpg.create_pool(database_url, min_size=10, max_size=10) as pool:
        await pool.execute(CREATE.format(count=count))
        await pool.execute(ADD_KEY)

        @post("/receipts", status_code=200)
        async def receive(data: dict[str, Any]) -> None:
            for each in data.get("results", [data]):
                await pool.execute(UPDATE, int(each.get("callbackData") or each["id"]), "delivered")

        app = Litestar([receive], openapi_config=None)
        config = uvicorn.Config(app, port=port, log_level="warning", access_log=False)
        await uvicorn.Server(config).serve()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database_url")
    parser.add_argument("port", type=int)
    parser.add_argument("count", type=int)
    args = parser.parse_args()
    asyncio.run(main(args.database_url, args.port, args.count))
