"""The built website: its files in memory, and the policy that browsers get with them.

No path of a request is ever looked for on the disk. Addresses that are no file and no route give
the site's page, which finds its own way from there; those of an API stay the API's.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parents[1] / "static"
"""Where the build puts it."""
MAX_BYTES = 32 << 20
"""Of all files: they are kept in memory."""
PAGE = "index.html"

POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""No inline script or style, nothing from elsewhere, in nobody's frame."""
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    # Not less: a browser that is to hide where it comes from hides it from our own checks too.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
APIS = ("api", "v1", "beta", "anthropic")
"""First parts of addresses that never give the page."""

_TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8", ".json": "application/json",
    ".webmanifest": "application/manifest+json", ".svg": "image/svg+xml", ".png": "image/png",
    ".ico": "image/x-icon", ".webp": "image/webp", ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}  # fmt: skip
_PACKED = (".html", ".js", ".css", ".json", ".webmanifest", ".svg", ".txt")
_HASHED = re.compile(r"assets/.+-[A-Za-z0-9_-]{8}\.[a-z0-9]+")


@dataclass(frozen=True)
class _File:
    content: bytes
    packed: bytes | None
    kind: str
    cache: str
    tag: str


class BuiltSite:
    """A site that is built.

    Args:
        folder: with ``index.html`` in it.

    Raises:
        OSError: a file cannot be read.
        ValueError: there is no page in it, or it is too large to be a site.
    """

    def __init__(self, folder: Path) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if sum(path.stat().st_size for path in files) > MAX_BYTES:
            raise ValueError(f"{folder} has more than {MAX_BYTES} bytes, which is no site of ours")
        self._files = {
            name: _read(path, name)
            for path in files
            if not (name := path.relative_to(folder).as_posix()).startswith(".")
        }
        if PAGE not in self._files:
            raise ValueError(f"{folder} has no {PAGE}")

    def page(self, request: Request) -> Response:
        """The site's page."""
        return self._answer(self._files[PAGE], request)

    def find(self, request: Request) -> Response | None:
        """What an address that no route has gives, or None: a file, or the page for a browser."""
        if request.method not in ("GET", "HEAD"):
            return None
        path = request.url.path.removeprefix("/")
        file = self._files.get(path)
        if file is not None:
            return self._answer(file, request)
        first, _, _ = path.partition("/")
        wants_page = "text/html" in request.headers.get("accept", "")
        if first in (*APIS, "assets") or not wants_page:
            return None
        return self.page(request)

    def _answer(self, file: _File, request: Request) -> Response:
        headers = {**HEADERS, "Cache-Control": file.cache, "ETag": file.tag}
        if file.packed is not None:
            headers["Vary"] = "Accept-Encoding"
        if file.cache != "no-store" and file.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        content = file.content
        if file.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"], content = "gzip", file.packed
        headers["Content-Type"] = file.kind
        return Response(content, headers=headers)


def built_site(folder: Path = FOLDER) -> BuiltSite | None:
    """The site of this installation, or None where it was not built."""
    return BuiltSite(folder) if (folder / PAGE).is_file() else None


def _read(path: Path, name: str) -> _File:
    content = path.read_bytes()
    cache = "no-cache"
    if path.suffix == ".html":
        cache = "no-store"
    elif _HASHED.fullmatch(name):
        cache = "public, max-age=31536000, immutable"
    packed = gzip.compress(content, 9, mtime=0) if path.suffix in _PACKED else None
    if packed is not None and len(packed) >= len(content):
        packed = None
    tag = f'W/"{sha256(content).hexdigest()[:24]}"'
    return _File(content, packed, _TYPES.get(path.suffix, "application/octet-stream"), cache, tag)
