"""Refuses requests that other sites make through the user's browser, and tells the browser what pages may do."""

import ipaddress
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Pages load scripts, styles and pictures from this server only, and nothing written inside a page runs."""

_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Safety:
    """An ASGI application around another one: it answers this machine's own pages only.

    ``host`` is the address that the server listens at. A request must name it, this machine or an IP address as its host, so
    that a foreign name which resolves to this machine is refused; and it must come from a page of this server, or from the
    address bar.
    """

    def __init__(self, app: App, host: str = "127.0.0.1"):
        self._app, self._host = app, host.lower()
        self._local = host in ("localhost", "::1") or host.startswith("127.")
        anywhere = "localhost, or by an IP address of its machine"
        self._names = "localhost" if self._local else anywhere if host in ("0.0.0.0", "::") else host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request, or refuse it."""
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope["method"], _decoded(scope["headers"]))
        if refusal:
            await _refuse(send, *refusal)
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, with_headers)

    def _refusal(self, method: str, headers: dict[str, str]) -> tuple[int, str] | None:
        """The status and the reason if a request is refused."""
        if method not in ("GET", "HEAD"):
            return 405, "only GET is answered"
        host = headers.get("host", "")
        if not self._is_own(host):
            return 403, f"the host of this address is refused; open the explorer as {self._names}"
        if "origin" in headers and _host_of(headers["origin"]) != host.lower():
            return 403, "requests of other sites are refused"
        foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if foreign and (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) != ("navigate", "document"):
            return 403, "requests of other sites are refused"
        return None

    def _is_own(self, host: str) -> bool:
        """Whether the host of a request is this server: by the name of this machine, or by an IP address."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
            if name in ("localhost", self._host):
                return True
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self._local


def _decoded(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}


def _host_of(origin: str) -> str | None:
    """Host and port of an origin, in lower case; None if it is not an address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


async def _refuse(send: Send, status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"x-content-type-options", b"nosniff")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{reason}\n".encode()})
