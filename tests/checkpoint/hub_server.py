"""A hub that speaks as much of Hugging Face's and ModelScope's protocols as a pull uses."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

COMMIT = "a" * 40
LARGE = 20_000


class Hub:
    """What the server serves, and what it was asked.

    Attributes:
        cut_at: file name and byte at which the next answer with that file breaks off.
        requests: method, path and Range of each request.
    """

    def __init__(self, repository: str, folder: Path) -> None:
        self.repository, self.folder = repository, folder
        self.cut_at: tuple[str, int] | None = None
        self.requests: list[tuple[str, str, str | None]] = []
        self.damage: str | None = None
        self.url = ""

    def etag(self, path: Path) -> str:
        """SHA-256 of large files, git's hash of small ones, as the hub does."""
        content = path.read_bytes()
        if len(content) >= LARGE:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve(repository: str, folder: Path) -> Iterator[Hub]:
    """Serve ``folder`` as the model ``repository`` on a free port of this machine."""
    hub = Hub(repository, folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None: ...

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            hub.requests.append((self.command, self.path, self.headers.get("Range")))
            path = self.path.split("?")[0]
            if path == "/":
                return self.send(200, b"hub", {})
            if re.fullmatch(rf"/api/models/{hub.repository}(/revision/[\w.-]+)?", path):
                return self.send(200, json.dumps(self.info()).encode(), {})
            if path.startswith(f"/api/models/{hub.repository}/tree/"):
                return self.send(200, json.dumps(self.tree()).encode(), {})
            if path == f"/api/v1/models/{hub.repository}/repo/files":
                content = {"Code": 200, "Success": True, "Data": {"Files": self.listing()}}
                return self.send(200, json.dumps(content).encode(), {})
            if path == f"/api/v1/models/{hub.repository}/repo":
                name = parse_qs(urlsplit(self.path).query)["FilePath"][0]
                return self.send_file(hub.folder / Path(name).name)
            found = re.fullmatch(rf"/{hub.repository}/resolve/[\w.-]+/(.+)", path)
            if found is None or not (hub.folder / found[1]).is_file():
                return self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
            return self.send_file(hub.folder / found[1])

        def info(self) -> dict[str, Any]:
            names = sorted(p.name for p in hub.folder.iterdir())
            return {
                "id": hub.repository, "modelId": hub.repository, "sha": COMMIT, "private": False,
                "tags": [], "downloads": 0, "likes": 0,
                "siblings": [{"rfilename": name} for name in names],
            }  # fmt: skip

        def tree(self) -> list[dict[str, Any]]:
            entries = []
            for path in sorted(hub.folder.iterdir()):
                size, etag = path.stat().st_size, hub.etag(path)
                entry = {"type": "file", "oid": etag[:40], "size": size, "path": path.name}
                if size >= LARGE:
                    entry["lfs"] = {"oid": etag, "size": size, "pointerSize": 100}
                entries.append(entry)
            return entries

        def listing(self) -> list[dict[str, Any]]:
            return [
                {
                    "Path": path.name, "Name": path.name, "Type": "blob", "Revision": COMMIT,
                    "Size": path.stat().st_size, "IsLFS": path.stat().st_size >= LARGE,
                    "Sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                }
                for path in sorted(hub.folder.iterdir())
            ]  # fmt: skip

        def send_file(self, path: Path) -> None:
            content = path.read_bytes()
            etag = hub.etag(path)
            if hub.damage == path.name:
                content = content[:-1] + bytes([content[-1] ^ 1])
            headers = {
                "X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Accept-Ranges": "bytes",
                "X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(content)),
            }  # fmt: skip
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            status = 200
            if wanted and int(wanted[1]) > 0:
                start = int(wanted[1])
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                content, status = content[start:], 206
            self.send(status, content, headers, path.name)

        def send(
            self, status: int, content: bytes, headers: dict[str, str], name: str = ""
        ) -> None:
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.cut_at is not None and hub.cut_at[0] == name:
                self.wfile.write(content[: hub.cut_at[1]])
                self.wfile.flush()
                hub.cut_at = None
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
