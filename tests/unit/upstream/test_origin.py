"""Where requests may go, and what a head may hold."""

from __future__ import annotations

import pytest

from proxy.upstream.heads import field, fixed_part, passed_on
from proxy.upstream.origin import Origin, fixed_origin, fixed_url, parsed
from proxy.upstream.transport import Target


@pytest.mark.parametrize(("url", "authority", "prefix"), [
    ("http://10.0.0.5:8000", "10.0.0.5:8000", ""), ("http://engine/", "engine", ""),
    ("HTTPS://API.x.com:443/v1", "api.x.com", ""), ("http://h:80/v1/", "h", ""),
    ("https://h:80/openai/v1", "h:80", "/openai"), ("http://[::1]:9/a%20b", "[::1]:9", "/a%20b"),
    ("http://münchen.example", "xn--mnchen-3ya.example", ""), ("http://h/a b", "h", "/a%20b")])
def test_an_origin_and_its_prefix(url, authority, prefix):
    origin, found = fixed_origin(Target("one", url))
    assert (origin.authority, found) == (authority, prefix)
    assert fixed_url(Target("one", url)) == f"{origin.scheme}://{authority}{prefix}"


@pytest.mark.parametrize("url", [
    "ftp://h", "http://", "h:80", "http://u@h", "http://u:p@h", "http://@h", "http://h?x", "http://h#x", "http://h:x",
    "http://h:99999", "http://[::1", "http://h\r\nx", "http://h h", "http://\\h", "http://h/\r\nx: y", "",
    "//h", "http:/h", "http://" + "é" * 70])
def test_what_is_no_plain_origin(url):
    with pytest.raises(ValueError, match="one: url must be"):
        fixed_origin(Target("one", url))


def test_scheme_host_and_port_make_an_origin():
    assert parsed("http://h")[0] == parsed("http://H:80/x")[0] == Origin("http", "h", 80)
    assert len({parsed(url)[0] for url in ("http://h", "https://h", "http://h:81", "http://i")}) == 4


@pytest.mark.parametrize(("name", "value"), [
    ("a b", "x"), ("", "x"), ("a:", "x"), ("ä", "x"), ("x", "a\r\nb: c"), ("x", "a\nb"), ("x", "a\0"), ("x", "\x7f"),
    ("x", "\u0100")])
def test_what_is_more_or_less_than_a_header_is_not_sent(name, value):
    with pytest.raises(ValueError):
        field(name, value)


@pytest.mark.parametrize("target", ["", "x", "/a b", "/a\r\nb", "/ä", "http://h/"])
def test_what_is_no_target_is_not_asked_for(target):
    with pytest.raises(ValueError):
        fixed_part("GET", Origin("http", "h", 80), target, ())


def test_bytes_beyond_ascii_in_a_callers_header_go_out_as_they_came():
    assert passed_on([("X-Name", "Jos\xe9"), ("x-name", "\xfc"), ("Cookie", "a")]) == b"x-name: \xfc\r\n"
