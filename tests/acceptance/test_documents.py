"""README, other documents and deployment files agree with the program."""

import asyncio
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.compose import RequiredVariableError, environment_of
from tests.event_timeout import EVENT_TIMEOUT
from tests.processes import Gateways, MailerProcess, Mailers, until_true

from mailer.errors import StartError
from mailer.settings import Settings, read_settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MAILER_COMMAND = 'mailer() { "$PYTHON" -m mailer "$@"; }'
"""Defines the shell command `mailer` for the code that is tested."""
CODE_BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


async def test_every_call_in_readme_works(
    start_gateway: Gateways, start_mailer: Mailers, tmp_path: Path
) -> None:
    gateway = await start_gateway(latency=3)  # README's mailing must not finish during the test
    mailer = await start_mailer(**gateway.settings, auth="required")
    blocks_with_calls = [block for block in CODE_BLOCKS if "api" in block]
    assert len(blocks_with_calls) == 5
    script = "".join(blocks_with_calls).replace("http://127.0.0.1:8000", mailer.address)
    script = script.replace("curl ", "curl --silent --show-error --fail-with-body ")
    process = subprocess.run(  # noqa: S603  # commands of README
        ["/bin/bash", "-euxo", "pipefail", "-c", f"{MAILER_COMMAND}\n{script}"],
        cwd=tmp_path,
        env=os.environ | {"MAILER_DATABASE_URL": mailer.database_url, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=EVENT_TIMEOUT,
        check=False,
    )
    assert process.returncode == 0, (process.stdout, process.stderr)
    assert "id,mailing_id" in (tmp_path / "messages.csv").read_text()


def test_pictures_of_the_pages_exist_are_small_and_come_from_the_script() -> None:
    script_names = runpy.run_path(str(ROOT / "docs/pictures/pages.py"))["PICTURES"]
    document = (ROOT / "docs/pages.md").read_text()
    # with a description of at least ten characters
    shown_files = re.findall(r"!\[[^\]]{10,}\]\(pictures/([^)]+\.png)\)", document)
    assert sorted(shown_files) == sorted(f"{name}.png" for name in script_names)
    assert document.count("![") == len(shown_files)
    for file in shown_files:
        assert (ROOT / "docs/pictures" / file).stat().st_size < 150_000, file
    assert "(docs/pages.md)" in README


def test_every_command_in_readme_exists() -> None:
    in_readme = set(re.findall(r"`mailer ([a-z-]+)", README))
    help_text = subprocess.run(
        [sys.executable, "-m", "mailer", "--help"], capture_output=True, text=True, check=True
    ).stdout
    in_help = set(re.findall(r"^  ([a-z][a-z-]*)  ", help_text, re.MULTILINE))
    assert in_readme == in_help


def test_every_setting_is_in_readme() -> None:
    table = README.partition("## Settings")[2].partition("## Run it")[0]
    rows = "\n".join(re.findall(r"^\|[^|]*\|", table, re.MULTILINE))
    in_readme = set(re.findall(r"`([A-Z_]+)`", rows))
    assert in_readme == {name.upper() for name in Settings.__struct_fields__}


@pytest.mark.parametrize("name", ["Containerfile", "deploy/mailer.service"])
def test_deployment_files_have_valid_settings_with_authentication(
    name: str, tmp_path: Path
) -> None:
    settings = read_settings(_settings_in(name), tmp_path / "none.env")
    assert settings.auth == "required"
    assert settings.is_loopback is (name == "deploy/mailer.service")


def _settings_in(name: str) -> dict[str, str]:
    """Return the environment variables of mailer that a deployment file sets."""
    return dict(re.findall(r"(MAILER_[A-Z_]+)=(\S+)", (ROOT / name).read_text()))


def _composed(variables: dict[str, str]) -> Settings:
    """Return the settings of mailer in the container that `docker compose up` starts.

    `variables` are those of the shell.
    """
    image = _settings_in("Containerfile")
    environment = environment_of(ROOT / "deploy/compose.yaml", "mailer", variables)
    return read_settings(image | environment, Path("/nonexistent/.env"))


def test_compose_requires_only_the_documented_variable() -> None:
    settings = _composed({"POSTGRES_PASSWORD": "hush"})
    assert settings.database_url == "postgresql://mailer:hush@database:5432/mailer"
    assert settings.monitoring_token is None
    assert (settings.auth, settings.is_loopback) == ("required", False)
    with pytest.raises(RequiredVariableError, match="POSTGRES_PASSWORD"):
        _composed({})


def test_compose_passes_every_setting_under_its_own_name() -> None:
    """Except settings of address, database and authentication, which the file sets itself."""
    set_by_file = {"host", "port", "data_dir", "database_url", "auth"}
    passed_on = [name for name in Settings.__struct_fields__ if name not in set_by_file]
    names = [f"MAILER_{name.upper()}" for name in passed_on]
    variables = {name: f"value of {name}" for name in names}
    environment = environment_of(
        ROOT / "deploy/compose.yaml", "mailer", variables | {"POSTGRES_PASSWORD": "hush"}
    )
    del environment["MAILER_DATABASE_URL"]
    assert environment == variables


def test_empty_monitoring_token_stops_the_start_with_compose() -> None:
    with pytest.raises(StartError, match="MAILER_MONITORING_TOKEN: is empty"):
        _composed({"POSTGRES_PASSWORD": "hush", "MAILER_MONITORING_TOKEN": ""})


@pytest.mark.parametrize("name", ["deploy/mailer.service", "deploy/compose.yaml"])
def test_example_of_a_trusted_proxy_is_the_address_that_the_process_sees(name: str) -> None:
    """Loopback for the systemd unit; for a container, the gateway of its network."""
    content = (ROOT / name).read_text()
    proxies = re.findall(r"MAILER_TRUSTED_PROXIES=([0-9.]+)", content)
    assert proxies == re.findall(r"gateway: (\S+)", content) or proxies == ["127.0.0.1"]


async def test_demo_sends_through_both_gateways_and_removes_its_files_at_the_end() -> None:
    environ = {name: value for name, value in os.environ.items() if "MAILER" not in name}
    with tempfile.TemporaryDirectory(prefix="mailer-tmp-") as temporary:
        Path(temporary).chmod(0o755)
        demo = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mailer", "demo"),
            env=environ | {"MAILER_PORT": "0", "TMPDIR": temporary},
            stdout=asyncio.subprocess.PIPE,
        )
        assert demo.stdout is not None
        line = ""
        while "pages" not in line:  # the line with the address of the pages
            line = (await demo.stdout.readline()).decode()
        address = line.split()[-1]

        async def get(path: str) -> Any:
            async with aiohttp.request("GET", f"{address}api/v1{path}") as response:
                return await response.json()

        async def have_both_delivered() -> bool:
            """Return whether a mailing has messages of both gateways: the first one was out."""
            gateways = [
                {each["gateway"] for each in statistics["gateways"]}
                for mailing in (await get("/mailings"))["results"]
                if (statistics := await get(f"/mailings/{mailing['id']}/statistics"))
            ]
            return {"main", "backup"} in gateways

        await until_true(have_both_delivered)
        assert list(Path(temporary).iterdir())
        demo.send_signal(signal.SIGINT)
        assert await demo.wait() == 0
        assert not list(Path(temporary).iterdir())


async def test_installed_wheel_serves_in_an_empty_folder(tmp_path: Path) -> None:
    """The wheel is unpacked as by `pip install`; Python sees nothing of the checkout."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)  # noqa: S603  # it builds this project
    site = tmp_path / "site"
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(site)
    with tempfile.TemporaryDirectory(prefix="mailer-empty-") as empty:
        Path(empty).chmod(0o755)
        mailer = MailerProcess(data_dir=f"{empty}/data")
        await mailer.start(cwd=empty, python_path=str(site))
        await mailer.call("GET", "/health/ready")
        async with mailer.session.get("/docs") as response:
            assert response.status == 200
        assert await mailer.stop() == 0
