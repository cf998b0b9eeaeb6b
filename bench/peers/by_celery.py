"""Sending with Celery, as a user of Celery would write it, for `against_peers.py`.

As a script, it publishes a task for each message; `celery worker` imports it and runs the tasks.

It follows Celery's documentation ("Optimizing", "Tasks"): a task is acknowledged when it is done,
and stays on disk until then; no results, no rate limits, a large prefetch. A task contains all data
of its request. HTTP and PostgreSQL connections are pooled, one for each greenlet.

The fastest options were chosen. Of the worker's pools gevent is the fastest here, then threads; 50
processes (prefork) are much slower. The HTTP client is urllib3; requests, which is built on it, is
much slower.
"""

import os

import psycopg  # type: ignore[import-not-found]  # only in the peers' venv, like all of these
import urllib3
from celery import Celery  # type: ignore[import-not-found]
from celery.signals import worker_init  # type: ignore[import-not-found]
from psycopg_pool import ConnectionPool  # type: ignore[import-not-found]

DATABASE_URL = os.environ["PEER_DATABASE_URL"]
SINK_URL = os.environ["PEER_SINK_URL"]
TOKEN = os.environ["PEER_TOKEN"]
CONCURRENCY = int(os.environ["PEER_CONCURRENCY"])

SELECT_MESSAGES = "SELECT id, phone, text FROM message ORDER BY id"
MARK_DELIVERED = "UPDATE message SET status = 'delivered', delivered_at = now() WHERE id = %s"

app = Celery("by_celery", broker=os.environ["PEER_BROKER_URL"])
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_disable_rate_limits=True,
    worker_enable_remote_control=False,
    worker_prefetch_multiplier=64,  # as Celery recommends for many short tasks
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
    """Open the database connections when a worker starts. Publishing does not use this pool."""
    database.open(wait=True)


worker_init.connect(connect)


def send(number: int, phone: int, text: str) -> None:
    """Send the message with id `number`, and mark it as delivered."""
    body = {"id": number, "phone": phone, "text": text}
    if http.request("POST", f"{SINK_URL}{number}", json=body).json()["code"] != 0:
        raise RuntimeError("the sink rejected a message")
    with database.connection() as connection:
        connection.execute(MARK_DELIVERED, [number])


task = app.task(name="send")(send)


def publish() -> None:
    """Publish a task for each message, through one connection."""
    with psycopg.connect(DATABASE_URL) as connection, app.producer_pool.acquire() as producer:
        for row in connection.execute(SELECT_MESSAGES):
            task.apply_async(row, producer=producer)


if __name__ == "__main__":
    publish()
