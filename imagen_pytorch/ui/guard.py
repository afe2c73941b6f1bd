"""The check of requests: the page answers those of its own origin, under its own name."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import Any

#: Values of ``Sec-Fetch-Site`` of requests that a page of another origin makes.
_FOREIGN = (b"cross-site", b"same-site")
_REFUSED = b"this page answers requests of its own origin only"


def is_loopback(host: str) -> bool:
    """Return whether an address or name is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def hosts_of(host: str, port: int) -> frozenset[str] | None:
    """Return the values of the header ``Host`` under which a page is asked for, or None if any may be right.

    Args:
        host: address or name that the server listens at.
        port: its port.
    """
    names = {"127.0.0.1", "localhost", "[::1]"} if is_loopback(host) else {f"[{host}]" if ":" in host else host}
    unspecified = host in ("0.0.0.0", "::")  # the machine may have any name
    return None if unspecified else frozenset(f"{name}:{port}".removesuffix(":80") for name in names)


class Guard:
    """ASGI middleware that refuses requests which other pages make a browser send.

    A name of someone else's that leads to this machine (DNS rebinding) is refused by the header ``Host``, a page of
    another origin by ``Origin`` and ``Sec-Fetch-Site``. A link on such a page may open this one, and no frame may.

    Args:
        app: the application.
        hosts: from `hosts_of`; None accepts any, which needs a password.
    """

    def __init__(self, app: Any, hosts: Collection[str] | None) -> None:
        self.app, self.hosts = app, hosts

    def accepts(self, headers: dict[bytes, bytes], method: str) -> bool:
        """Return whether a request with these headers is answered."""
        host = headers.get(b"host", b"").decode("latin-1").lower().removesuffix(":80")
        origin = headers.get(b"origin")
        if self.hosts is not None and host not in self.hosts:
            return False
        if origin is not None and origin.decode("latin-1").lower().partition("://")[2].removesuffix(":80") != host:
            return False
        opens = method == "GET" and headers.get(b"sec-fetch-dest") == b"document"
        return opens or headers.get(b"sec-fetch-site") not in _FOREIGN

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer a request with status 403, or pass it on and forbid frames around the answer."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if not self.accepts(dict(scope["headers"]), scope.get("method", "")):
            await _refuse(scope, send)
            return

        async def protected(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = ((b"x-frame-options", b"DENY"), (b"referrer-policy", b"same-origin"))
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        try:
            await self.app(scope, receive, protected)
        except Exception as error:
            if type(error).__name__ != "ClientDisconnect":  # of Starlette: a page was closed while it sent a file
                raise


async def _refuse(scope: dict[str, Any], send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    plain = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 403, "headers": plain})
    await send({"type": "http.response.body", "body": _REFUSED})
