"""The proxy of a gateway is found in the variables of the environment."""

import base64

import pytest

from mailer.gateway.proxy import Proxy, find_proxy

PROXY = "http://proxy.example:3128"
BOTH = {"HTTP_PROXY": "http://plain.example:80", "HTTPS_PROXY": PROXY}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://gateway.example/", PROXY),
        ("HTTPS://gateway.example/", PROXY),
        ("http://gateway.example:8080/", "http://plain.example:80"),
    ],
)
def test_each_scheme_has_its_variable(url: str, expected: str) -> None:
    assert find_proxy(url, BOTH) == Proxy(expected)


@pytest.mark.parametrize("environ", [{}, {"HTTPS_PROXY": ""}, {"HTTP_PROXY": PROXY}])
def test_without_a_variable_there_is_no_proxy(environ: dict[str, str]) -> None:
    assert find_proxy("https://gateway.example/", environ) is None


def test_name_in_lower_case_comes_first() -> None:
    environ = {"HTTPS_PROXY": "http://other.example", "https_proxy": PROXY}
    assert find_proxy("https://gateway.example/", environ) == Proxy(PROXY)
    assert find_proxy("https://gateway.example/", environ | {"https_proxy": ""}) is None


@pytest.mark.parametrize(
    ("no_proxy", "is_direct"),
    [
        ("gateway.example", True),
        ("Gateway.Example", True),
        ("other, .example", True),
        ("example", True),
        ("*", True),
        ("way.example", False),
        ("sub.gateway.example", False),
        ("", False),
        (",", False),
    ],
)
def test_hosts_and_domains_of_no_proxy_are_reached_directly(
    no_proxy: str, *, is_direct: bool
) -> None:
    proxy = find_proxy("https://gateway.example:8443/", BOTH | {"NO_PROXY": no_proxy})
    assert (proxy is None) == is_direct


def test_user_and_password_are_sent_in_a_header_and_not_shown() -> None:
    proxy = find_proxy("https://g.example/", {"HTTPS_PROXY": "http://ann:p%40ss@proxy.example:1/"})
    assert proxy is not None
    credentials = base64.b64encode(b"ann:p@ss").decode()
    assert proxy.headers == {"Proxy-Authorization": f"Basic {credentials}"}
    assert repr(proxy) == str(proxy) == "Proxy('http://proxy.example:1')"


@pytest.mark.parametrize(
    "address", ["proxy.example:3128", "https://proxy.example", "socks5://proxy.example", "http://"]
)
def test_address_that_is_no_http_proxy_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"^the environment variable HTTPS_PROXY must "):
        find_proxy("https://gateway.example/", {"HTTPS_PROXY": address})
