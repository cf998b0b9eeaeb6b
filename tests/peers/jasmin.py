"""A real Jasmin on loopback, with RabbitMQ and Redis, connected by SMPP to a message centre."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from configparser import RawConfigParser
from pathlib import Path

from tests.daemons import free_port, running, until_open
from tests.event_timeout import EVENT_TIMEOUT
from tests.programs import find_program, skip_or_fail

BIN = Path(".venv/jasmin/bin").absolute()
START = """
from jasmin.bin.jasmind import JasminDaemon, Options, reactor
options = Options()
options.parseOptions([])
JasminDaemon(options).start()
reactor.run()
"""
"""Does what jasmind.py does, without its lock in /tmp: only one Jasmin of a machine can have it."""
RABBITMQ = "/usr/lib/rabbitmq/bin/rabbitmq-server"
"""Not the one in the path, which runs as another user."""
LISTENERS = ("jcli", "http-api", "router", "client-management", "smpp-server", "smpp-server-pb")
"""Sections of Jasmin's configuration that each have an address."""
MAX_PARTS = 20
"""Parts of a text; Jasmin cuts off the others. By default 5."""
PASSWORD = "sesame"  # noqa: S105  # of users that exist for a test alone
USERS = {
    "ann": "quota balance ND",
    "without-balance": "quota balance 0.5",
    "without-quota": "quota sms_count 0",
    "without-sender": "authorization src_addr no",
    "without-rights": "authorization http_send no",
}
"""The users of Jasmin, each with a line of its console. ND: unlimited."""
ADD_USER = """
user -a
username {name}
password {password}
gid all
uid {name}
mt_messaging_cred {credential}
ok
"""
CONNECT = """
smppccm -a
cid centre
host 127.0.0.1
port {port}
submit_throughput 0
ok
smppccm -1 centre
mtrouter -a
type defaultroute
connector smppc(centre)
rate 1
ok
"""
"""`submit_throughput`: messages a second, 0 for no limit. `rate`: price of a part."""
PROMPT = re.compile(rb"\n(> |jcli : )$")
"""Inside a command that has several lines, and outside."""


@contextlib.asynccontextmanager
async def jasmin(folder: Path, centre_port: int) -> AsyncIterator[str]:
    """Run Jasmin with its files in `folder`, and return the address of its HTTP API.

    It sends to the message centre at `centre_port`. Skips the test if a program is not installed.
    """
    if not (BIN / "jasmind.py").exists():
        skip_or_fail("Jasmin")
    ports = {section: free_port() for section in LISTENERS}
    async with rabbitmq(folder) as rabbitmq_port, redis(folder) as redis_port:
        _configure(folder, {**ports, "amqp-broker": rabbitmq_port, "redis-client": redis_port})
        environ = {"ROOT_PATH": str(folder)}
        async with running(str(BIN / "python"), "-c", START, folder=folder, environ=environ):
            await until_open(ports["jcli"])
            script = "group -a\ngid all\nok"
            for name, credential in USERS.items():
                script += ADD_USER.format(name=name, password=PASSWORD, credential=credential)
            async with asyncio.timeout(EVENT_TIMEOUT):
                await _type(ports["jcli"], script + CONNECT.format(port=centre_port))
            yield f"http://127.0.0.1:{ports['http-api']}"


@contextlib.asynccontextmanager
async def rabbitmq(folder: Path) -> AsyncIterator[int]:
    """Run RabbitMQ, and the name server of Erlang that it needs; return the port of RabbitMQ."""
    port, names_port, none = free_port(), free_port(), str(folder / "none")
    environ = {
        "HOME": str(folder),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(names_port),
        "RABBITMQ_NODENAME": "rabbit@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_CONF_ENV_FILE": none,
        "RABBITMQ_CONFIG_FILE": none,
        "RABBITMQ_ENABLED_PLUGINS_FILE": none,
        "RABBITMQ_LOG_BASE": str(folder),
        "RABBITMQ_MNESIA_BASE": str(folder),
    }
    epmd = find_program("epmd")
    if not Path(RABBITMQ).exists():
        skip_or_fail("RabbitMQ")
    async with running(epmd, folder=folder, environ=environ):
        await until_open(names_port)  # otherwise RabbitMQ starts one, which never ends
        async with running(RABBITMQ, folder=folder, environ=environ):
            await until_open(port)
            yield port


@contextlib.asynccontextmanager
async def redis(folder: Path) -> AsyncIterator[int]:
    """Run Redis, and return its port."""
    port = free_port()
    options = ("--bind", "127.0.0.1", "--port", str(port), "--save", "")
    async with running(find_program("redis-server"), *options, folder=folder):
        await until_open(port)
        yield port


def _configure(folder: Path, ports: dict[str, int]) -> None:
    """Write the configuration of Jasmin, and create the folders that it needs."""
    for name in ("store", "resource"):
        (folder / "etc/jasmin" / name).mkdir(parents=True)
    config = RawConfigParser()
    config.read_dict(
        {section: {"bind": "127.0.0.1", "port": str(port)} for section, port in ports.items()}
    )
    config["jcli"]["authentication"] = "no"
    config["http-api"]["long_content_max_parts"] = str(MAX_PARTS)
    config["amqp-broker"]["spec"] = str(next(BIN.parent.rglob("amqp0-9-1.stripped.xml")))
    with (folder / "etc/jasmin/jasmin.cfg").open("w") as file:
        config.write(file)


async def _type(port: int, script: str) -> None:
    """Type the lines of a script into Jasmin's console, each after the answer to the one before."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        for line in filter(None, script.splitlines()):
            writer.write(line.encode() + b"\r\n")
            answer = b""
            while not (prompt := PROMPT.search(answer)):
                received = await reader.read(4_096)
                assert received, (line, answer)
                answer += received
            assert prompt[1] == b"> " or b"Successfully" in answer, (line, answer)
