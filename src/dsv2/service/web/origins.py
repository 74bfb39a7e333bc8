"""Where a request comes from: which host it names, and which site's page has sent it."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from dsv2.service.web.errors import ApiError

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


def is_loopback(host: str) -> bool:
    """Whether a host's name or address means this machine and nothing else."""
    if host.rstrip(".").lower() in ("localhost", "ip6-localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_of(connection: HTTPConnection) -> str:
    """The host that the request names, without its port; empty if it names none, or several."""
    return _split(_only(connection.headers, "host"))


def is_local(connection: HTTPConnection) -> bool:
    """Whether somebody on this machine asks, by one of its own names, and through no proxy."""
    if any(name in connection.headers for name in _PROXY_HEADERS):
        return False
    client = connection.client
    return is_loopback(host_of(connection)) and client is not None and is_loopback(client.host)


def is_same_site(connection: HTTPConnection) -> bool:
    """Whether the page that has sent this is this server's own, by what its browser says.

    Browsers say so with every request that changes something. One that says nothing is no browser,
    and has no cookies that somebody else's page could use; the answer for it is no as well.
    """
    fetch_site = connection.headers.get("sec-fetch-site")
    if fetch_site is not None and fetch_site != "same-origin":
        return False
    origin = _only(connection.headers, "origin")
    if not origin:
        return fetch_site == "same-origin" and "origin" not in connection.headers
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    host = _only(connection.headers, "host")
    return parts.scheme in ("http", "https") and bool(host) and parts.netloc == host


def comes_from_a_page(connection: HTTPConnection) -> bool:
    """Whether a browser has sent this for a page, its own or another site's."""
    return (
        "origin" in connection.headers or connection.headers.get("sec-fetch-site", "none") != "none"
    )


def check_same_site(connection: HTTPConnection) -> None:
    """Refuse what another site's page has sent with this site's cookies.

    Raises:
        ApiError: 403.
    """
    if not is_same_site(connection):
        raise ApiError(403, "This may only be asked by this site's own pages", code="cross_site")


def _only(headers: Headers, name: str) -> str:
    values = headers.getlist(name)
    return values[0] if len(values) == 1 else ""


def _split(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()
