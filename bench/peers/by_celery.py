"""The work as a Celery user writes it; run as a script, it publishes every message.

The ways of its documentation ("Optimizing", "Tasks"): a message is acknowledged when its task is
done and is kept on disk until then, no results, no rate limits, plenty prefetched. A task carries
all that its request needs; the connections of HTTP and PostgreSQL are pooled, one a greenlet. Of
the worker's pools gevent is the fastest here, before threads; 50 processes (prefork) are far
behind. So is requests behind urllib3, on which it is built.
"""

import os

import psycopg  # type: ignore[import-not-found]  # in the peers' venv only, like all of these
import urllib3
from celery import Celery  # type: ignore[import-not-found]
from celery.signals import worker_init  # type: ignore[import-not-found]
from psycopg_pool import ConnectionPool  # type: ignore[import-not-found]

DATABASE_URL = os.environ["PEER_DATABASE_URL"]
SINK_URL = os.environ["PEER_SINK_URL"]
TOKEN = os.environ["PEER_TOKEN"]
CONCURRENCY = int(os.environ["PEER_CONCURRENCY"])

MESSAGES = "SELECT id, phone, text FROM message ORDER BY id"
DELIVERED = "UPDATE message SET status = 'delivered', delivered_at = now() WHERE id = %s"

app = Celery("by_celery", broker=os.environ["PEER_BROKER_URL"])
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_disable_rate_limits=True,
    worker_enable_remote_control=False,
    worker_prefetch_multiplier=64,  # "lots of short tasks"
)
http = urllib3.PoolManager(maxsize=CONCURRENCY, headers={"Authorization": f"Bearer {TOKEN}"})
database = ConnectionPool(
    DATABASE_URL,
    min_size=CONCURRENCY,
    max_size=CONCURRENCY,
    kwargs={"autocommit": True},
    open=False,
)


def connect(**_: object) -> None:
    """Open the connections: a worker needs them, who publishes does not."""
    database.open(wait=True)


worker_init.connect(connect)


def send(number: int, phone: int, text: str) -> None:
    """Send one message and mark it as delivered."""
    body = {"id": number, "phone": phone, "text": text}
    if http.request("POST", f"{SINK_URL}{number}", json=body).json()["code"] != 0:
        raise RuntimeError("the sink refused a message")
    with database.connection() as connection:
        connection.execute(DELIVERED, [number])


task = app.task(name="send")(send)


def publish() -> None:
    """Publish a task for each message, through one connection."""
    with psycopg.connect(DATABASE_URL) as connection, app.producer_pool.acquire() as producer:
        for row in connection.execute(MESSAGES):
            task.apply_async(row, producer=producer)


if __name__ == "__main__":
    publish()
