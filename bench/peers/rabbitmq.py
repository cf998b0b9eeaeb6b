"""A RabbitMQ node of the benchmark's own: new, on the loopback alone, gone when it is left."""

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import harness

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""Debian's; that on the PATH is a wrapper that keeps its log in /var/log."""
STARTED = b"Server startup complete"


def is_installed() -> bool:
    """Whether Debian's RabbitMQ, and with it Erlang, is here."""
    return SERVER.exists() and shutil.which("epmd") is not None


@asynccontextmanager
async def rabbitmq(folder: Path) -> AsyncIterator[str]:
    """Run a node with its data and its Erlang cookie in `folder`; yields its URL."""
    node_port, distribution_port, epmd_port = free_ports(3)
    erlang = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),  # of the cookie
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(epmd_port),
    }
    rabbit = {
        "NODENAME": "peers@localhost",
        "NODE_IP_ADDRESS": "127.0.0.1",
        "NODE_PORT": str(node_port),
        "DIST_PORT": str(distribution_port),
        "SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "MNESIA_BASE": str(folder / "mnesia"),
        "LOG_BASE": str(folder / "log"),
        "LOGS": "-",
        # Nothing of a node that the machine has already: none of these exists.
        "CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
        "CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "CONFIG_FILES": str(folder / "conf.d"),
        "ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
        "ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
    }
    environ = erlang | {f"RABBITMQ_{name}": value for name, value in rabbit.items()}
    environ["RUNNING_UNDER_SYSTEMD"] = "true"  # no shell in between, which would keep signals
    async with AsyncExitStack() as stack:
        # As a child: one that the node started would be nobody's, and stay.
        epmd = await asyncio.create_subprocess_exec("epmd", env=erlang)
        stack.push_async_callback(harness.stop, epmd)
        server = await asyncio.create_subprocess_exec(
            SERVER,
            env=environ,
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        stack.push_async_callback(harness.stop, server)
        assert server.stdout is not None  # noqa: S101  # it is a pipe
        await asyncio.wait_for(_started(server.stdout), harness.PATIENCE)
        draining = asyncio.create_task(server.stdout.read())
        yield f"amqp://guest:guest@127.0.0.1:{node_port}//"
        draining.cancel()


async def _started(output: asyncio.StreamReader) -> None:
    """Read until the node is up. Raises `RuntimeError` with what it said when it ends before."""
    said = b""
    async for line in output:
        if STARTED in line:
            return
        said += line
    raise RuntimeError(f"RabbitMQ did not start:\n{said.decode()}")


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback that nobody listens on."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
