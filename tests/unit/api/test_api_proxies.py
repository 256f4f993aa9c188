"""Which proxy an address goes through."""

from __future__ import annotations

import pytest

from lightlyfs.api.addresses import Proxies
from lightlyfs.api.redaction import redact


@pytest.mark.parametrize(
    ("environ", "http", "https"),
    [
        ({}, None, None),
        ({"http_proxy": "http://a:1"}, "http://a:1", None),
        ({"HTTP_PROXY": "http://a:1", "HTTPS_PROXY": "http://b:2"}, "http://a:1", "http://b:2"),
        ({"https_proxy": "http://low:1", "HTTPS_PROXY": "http://up:2"}, None, "http://low:1"),
        ({"ALL_PROXY": "p:3"}, "http://p:3", "http://p:3"),
        ({"all_proxy": "http://p:3", "HTTP_PROXY": "http://a:1"}, "http://a:1", "http://p:3"),
        ({"HTTP_PROXY": "", "ALL_PROXY": " "}, None, None),
        ({"ALL_PROXY": "u%40:p\u00e9 w@a:1"}, "http://u%40:p%C3%A9%20w@a:1", "http://u%40:p%C3%A9%20w@a:1"),
        ({"HTTP_PROXY": "u:p/?#@w'\"@a:1/"}, "http://u:p%2F%3F%23%40w%27%22@a:1/", None),
        ({"HTTP_PROXY": "http://u:\udce9@a:1"}, "http://u:%E9@a:1", None),
    ],
)
def test_proxies_come_from_the_environment(
    environ: dict[str, str], http: str | None, https: str | None
) -> None:
    proxies = Proxies.from_environ(environ)
    assert (proxies.http, proxies.https) == (http, https)
    assert proxies.for_url("http://host.test/x") == http
    assert proxies.for_url("HTTPS://host.test/x") == https


@pytest.mark.parametrize(
    ("entry", "url", "direct"),
    [
        ("*", "http://any.test/", True),
        ("host.test", "http://host.test/", True),
        ("host.test", "http://HOST.test./", True),
        ("host.test", "http://sub.host.test/", True),
        (".host.test", "http://sub.host.test/", True),
        ("*.host.test", "http://sub.host.test/", True),
        ("HOST.test", "http://host.test/", True),
        ("host.test", "http://nothost.test/", False),
        ("host.test", "http://host.test.evil/", False),
        ("host.test:8080", "http://host.test:8080/", True),
        ("host.test:8080", "http://host.test/", False),
        ("host.test:80", "http://host.test/", True),
        ("host.test:443", "https://host.test/", True),
        ("10.0.0.0/8", "http://10.1.2.3/", True),
        ("10.0.0.0/8", "http://11.1.2.3/", False),
        ("10.0.0.0/99", "http://10.1.2.3/", False),
        ("10.1.2.3", "http://10.1.2.3:99/", True),
        ("10.1.2.3:98", "http://10.1.2.3:99/", False),
        ("::1", "http://[::1]:9/", True),
        ("[::1]:9", "http://[::1]:9/", True),
        ("fe80::/10", "http://[fe80::1]/", True),
        ("[fd00::]/8", "http://[fd12:3456::1]:8080/", True),
        ("fd00::/8", "http://[fe80::1]/", False),
        ("fe80::/10", "http://[fe80::1%25eth0]/", True),
        ("10.0.0.0/8", "http://[::ffff:10.1.2.3]/", True),
        ("2001:db8::7", "https://[2001:DB8:0::7]/", True),
        ("10.0.0.0/8", "http://ten.test/", False),
        ("localhost", "http://127.0.0.1/", False),
        (".", "http://host.test/", False),
    ],
)
def test_no_proxy_entries(entry: str, url: str, direct: bool) -> None:
    proxies = Proxies.from_environ({"ALL_PROXY": "http://p:1", "NO_PROXY": f"other.test,{entry} x.test"})
    assert (proxies.for_url(url) is None) == direct


@pytest.mark.parametrize(
    "password", ["secret@secret", "secret/secret", "secret'secret", "secret secret", "sécret"]
)
def test_no_part_of_a_password_is_shown_with_the_proxy(password: str) -> None:
    proxies = Proxies.from_environ({"HTTP_PROXY": f"http://user:{password}@proxy.test:x"})
    shown = redact(f"Unsupported proxy syntax in '{proxies.http}': Bad port")
    assert shown == "Unsupported proxy syntax in 'http://***@proxy.test:x': Bad port"
