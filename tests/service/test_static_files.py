"""The built site's files: F58's policy, F51's paths, and what browsers may keep."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from fastapi import APIRouter

from dsv2.service.routes.home import home_routes
from dsv2.service.web.app import create_app
from dsv2.service.web.deps import Public
from dsv2.service.web.static_files import BuiltSite, built_site
from tests.service.asgi import Reply, ask
from tests.service.fakes import identify

PAGE = b"<!doctype html><title>dsv2</title>" + b" " * 200
SCRIPT = "assets/index-Ab_4-x9z.js"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "static"
    (made / "assets").mkdir(parents=True)
    (made / "index.html").write_bytes(PAGE)
    (made / SCRIPT).write_bytes(b"let a = 1;" * 50)
    (made / "favicon.svg").write_bytes(b"<svg/>")
    (made / ".hidden").write_bytes(b"x")
    (tmp_path / "secret.txt").write_bytes(b"secret")
    return made


class Browser:
    def __init__(self, folder: Path | None) -> None:
        site = None if folder is None else built_site(folder)
        api = APIRouter()
        api.add_api_route("/v1/models", lambda: {}, dependencies=[Public])
        api.add_api_route("/chat/completions", lambda: {}, methods=["POST"], dependencies=[Public])
        self.app = create_app(identify, [home_routes(site), api], site=site)

    def get(self, path: str, method: str = "GET", **headers: str) -> Reply:
        sent = {"accept": "text/html", **{k.replace("_", "-"): v for k, v in headers.items()}}
        return ask(self.app, path, method=method, headers=sent)


@pytest.fixture
def browser(folder: Path) -> Browser:
    return Browser(folder)


@pytest.mark.parametrize("path", ["/", "/index.html", "/c/conversation_1", "/login", "/chat/x.y"])
def test_addresses_of_the_site_give_its_page(browser: Browser, path: str) -> None:
    reply = browser.get(path)
    assert reply.status == 200 and reply.body == PAGE
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/api/nothing", "GET", 404),
        ("/api", "GET", 404),
        ("/v1/nothing", "GET", 404),
        ("/beta/x", "GET", 404),
        ("/anthropic/x", "GET", 404),
        ("/assets/gone-12345678.js", "GET", 404),
        ("/chat/completions", "GET", 405),
        ("/nothing", "POST", 404),
        ("/v1/models", "GET", 200),
    ],
)
def test_addresses_of_the_api_stay_its_own(
    browser: Browser, path: str, method: str, status: int
) -> None:
    reply = browser.get(path, method)
    assert reply.status == status and reply.body != PAGE
    assert reply.headers["content-type"] == "application/json"


def test_programs_get_no_page(browser: Browser) -> None:
    reply = browser.get("/nothing", accept="*/*")
    assert reply.status == 404 and reply.error["message"] == "There is no such address"


@pytest.mark.parametrize("path", ["/", f"/{SCRIPT}", "/favicon.svg", "/login"])
def test_the_policy_goes_with_everything(browser: Browser, path: str) -> None:
    """F58, F58b."""
    headers = browser.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' data:" and policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in str(policy) and "http" not in str(policy)
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"


def test_what_has_a_hash_in_its_name_is_kept_for_a_year(browser: Browser) -> None:
    script = browser.get(f"/{SCRIPT}", accept="*/*")
    assert script.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    icon = browser.get("/favicon.svg", accept="*/*")
    assert icon.headers["cache-control"] == "no-cache"
    again = browser.get("/favicon.svg", if_none_match=icon.headers["etag"])
    assert again.status == 304 and again.body == b""
    assert browser.get("/", if_none_match=browser.get("/").headers["etag"]).status == 200


def test_text_is_packed_for_who_can_unpack_it(browser: Browser) -> None:
    packed = browser.get(f"/{SCRIPT}", accept_encoding="gzip, br")
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == "Accept-Encoding"
    plain = browser.get(f"/{SCRIPT}")
    assert "content-encoding" not in plain.headers
    assert gzip.decompress(packed.body) == plain.body
    assert int(packed.headers["content-length"]) == len(packed.body) < len(plain.body)


@pytest.mark.parametrize(
    "path",
    ["/../secret.txt", "/%2e%2e/secret.txt", "/assets/../../secret.txt", "//etc/passwd", "/.hidden",
     "/assets/..%2f..%2fsecret.txt", "/assets\\..\\..\\secret.txt"],
)  # fmt: skip
def test_no_path_leaves_the_folder(browser: Browser, path: str) -> None:
    """F51."""
    reply = browser.get(path, accept="*/*")
    assert reply.status == 404 and b"secret" not in reply.body


def test_without_a_site_there_is_a_word(tmp_path: Path) -> None:
    browser = Browser(tmp_path)
    assert b"not part of this build" in browser.get("/").body
    assert browser.get("/login").status == 404
    with pytest.raises(ValueError, match=r"no index\.html"):
        BuiltSite(tmp_path)


def test_what_is_no_site_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv2.service.web.static_files.MAX_BYTES", 100)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        built_site(folder)
