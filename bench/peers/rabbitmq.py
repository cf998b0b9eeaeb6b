"""A RabbitMQ server (a *node*) for Celery, on loopback and with its own data.

RabbitMQ runs on Erlang. Erlang's port mapper, the program `epmd`, must run beside the node. Both
end with the `async with` block of `rabbitmq`.
"""

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import harness

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""Debian's program itself; the one on the PATH is a wrapper that logs to /var/log."""
STARTED = b"Server startup complete"
"""What the server prints to standard output once it accepts connections."""


def is_installed() -> bool:
    """Return whether Debian's RabbitMQ is installed, and Erlang with it."""
    return SERVER.exists() and shutil.which("epmd") is not None


@asynccontextmanager
async def rabbitmq(folder: Path) -> AsyncIterator[str]:
    """Run a node for the block, and yield its URL.

    Its data and its Erlang cookie (the password between Erlang programs) are in `folder`.
    """
    node_port, distribution_port, epmd_port = free_ports(3)
    erlang_environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),  # where Erlang keeps its cookie
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(epmd_port),
    }
    settings = _settings(folder, node_port, distribution_port)
    environ = erlang_environ | {f"RABBITMQ_{name}": value for name, value in settings.items()}
    # Otherwise a shell runs the server and catches the signals that should stop it.
    environ["RUNNING_UNDER_SYSTEMD"] = "true"
    async with AsyncExitStack() as stack:
        # Started here, because an epmd that the server starts would run on after its end.
        epmd = await asyncio.create_subprocess_exec("epmd", env=erlang_environ)
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
        await asyncio.wait_for(_wait_until_started(server.stdout), harness.PROCESS_TIMEOUT)
        draining = asyncio.create_task(server.stdout.read())  # a full pipe would block the server
        yield f"amqp://guest:guest@127.0.0.1:{node_port}//"
        draining.cancel()


def _settings(folder: Path, node_port: int, distribution_port: int) -> dict[str, str]:
    """Return the node's settings: environment variables without their prefix `RABBITMQ_`."""
    return {
        "NODENAME": "peers@localhost",
        "NODE_IP_ADDRESS": "127.0.0.1",
        "NODE_PORT": str(node_port),
        # A node always opens this port, for other nodes. By default it is open on all interfaces.
        "DIST_PORT": str(distribution_port),
        "SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "MNESIA_BASE": str(folder / "mnesia"),  # its database
        "LOG_BASE": str(folder / "log"),
        "LOGS": "-",  # standard output
        # None of these files exists, so that the node uses no configuration of this machine.
        "CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
        "CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "CONFIG_FILES": str(folder / "conf.d"),
        "ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
        "ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
    }


async def _wait_until_started(output: asyncio.StreamReader) -> None:
    """Read the output until the node has started.

    Raises `RuntimeError` with the output when the node ends before.
    """
    text = b""
    async for line in output:
        if STARTED in line:
            return
        text += line
    raise RuntimeError(f"RabbitMQ did not start:\n{text.decode()}")


def free_ports(count: int) -> list[int]:
    """Return `count` ports of loopback that are free at this moment."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
