"""The guard of the page: what a browser sends on behalf of other pages is refused, what its own page sends is not."""

from __future__ import annotations

import asyncio

import pytest

from imagen_pytorch.ui.guard import Guard, hosts_of, is_loopback

HOSTS = hosts_of("127.0.0.1", 7860)


def accepts(hosts=HOSTS, method="POST", **headers: str) -> bool:
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return Guard(None, hosts).accepts(named, method)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1:7860"},  # curl, gradio_client
        {"host": "LocalHost:7860"},
        {"host": "localhost:7860", "origin": "http://localhost:7860", "sec_fetch_site": "same-origin"},
        {"host": "[::1]:7860", "origin": "http://[::1]:7860"},
        {"host": "127.0.0.1:7860", "sec_fetch_site": "none"},  # typed address
    ],
    ids=str,
)
def test_the_page_itself_and_programs_are_answered(headers):
    assert accepts(**headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example:7860"},  # a name that leads to this machine
        {"host": "127.0.0.1"},
        {"host": "127.0.0.1:7861"},
        {},
        {"host": "127.0.0.1:7860", "origin": "http://evil.example"},
        {"host": "127.0.0.1:7860", "origin": "http://evil.example:7860"},
        {"host": "127.0.0.1:7860", "origin": "http://localhost:7860"},
        {"host": "localhost:7860", "origin": "http://localhost:8888"},  # another server of this machine
        {"host": "localhost:7860", "origin": "null"},
        {"host": "localhost:7860", "sec_fetch_site": "cross-site"},
        {"host": "localhost:7860", "sec_fetch_site": "same-site"},
        {"host": "localhost:7860", "sec_fetch_site": "cross-site", "sec_fetch_dest": "document"},  # a form, posted
    ],
    ids=str,
)
def test_other_pages_are_refused(headers):
    assert not accepts(**headers)


def test_a_link_opens_the_page_and_a_frame_does_not():
    foreign = {"host": "localhost:7860", "sec_fetch_site": "cross-site"}
    assert accepts(method="GET", sec_fetch_dest="document", **foreign)
    assert not accepts(method="GET", sec_fetch_dest="iframe", **foreign)


def test_names_of_a_server_for_other_machines():
    assert hosts_of("192.168.1.5", 80) == {"192.168.1.5"}
    assert hosts_of("::", 7860) is None is hosts_of("0.0.0.0", 7860)
    assert accepts(None, host="studio:7860", origin="http://studio:7860")
    assert not accepts(None, host="studio:7860", origin="http://evil.example")
    assert [is_loopback(name) for name in ("127.0.0.2", "::1", "localhost", "0.0.0.0", "studio")] == [True] * 3 + [
        False
    ] * 2


@pytest.mark.parametrize("kind, answer", [("http", "http.response.start"), ("websocket", "websocket.close")])
def test_a_refused_request_does_not_reach_the_page(kind, answer):
    sent = []

    async def page(*_):
        raise AssertionError("reached")

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "method": "POST", "headers": [(b"host", b"evil.example")]}
    asyncio.run(Guard(page, HOSTS)(scope, None, send))
    assert sent[0]["type"] == answer and sent[0].get("status", 403) == 403


def test_answers_forbid_frames():
    sent = []

    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "headers": [(b"host", b"localhost:7860")]}
    asyncio.run(Guard(page, HOSTS)(scope, None, send))
    assert (b"x-frame-options", b"DENY") in sent[0]["headers"]
