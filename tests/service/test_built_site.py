"""The site as it is built: its size, what a browser loads first, and what it may keep."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

import pytest

from dsv2.service.routes.home import home_routes
from dsv2.service.web.app import create_app
from dsv2.service.web.static_files import FOLDER, PAGE, built_site
from tests.service.asgi import ask
from tests.service.fakes import identify

MOST_FIRST_LOAD = 150_000
MOST_IN_ALL = 1_500_000


@pytest.fixture(scope="module")
def built() -> Path:
    if not (FOLDER / PAGE).is_file():
        message = "the site is not built: python web/npm.py build"
        if os.environ.get("DSV2_REQUIRE_BROWSER"):
            pytest.fail(message)
        pytest.skip(message)
    return FOLDER


def named_by_page(built: Path) -> list[str]:
    """What the page loads by itself."""
    page = (built / PAGE).read_text(encoding="utf-8")
    return re.findall(r'(?:src|href)="/([^"]+)"', page)


def test_first_load_is_small(built: Path) -> None:
    named = named_by_page(built)
    assert any(name.endswith(".js") for name in named)
    assert any(name.endswith(".css") for name in named)
    sizes = {name: len(gzip.compress((built / name).read_bytes())) for name in [PAGE, *named]}
    assert sum(sizes.values()) <= MOST_FIRST_LOAD, sizes


def test_all_of_it_is_small(built: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in built.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= MOST_IN_ALL, sizes


def test_page_has_nothing_that_its_policy_forbids(built: Path) -> None:
    page = (built / PAGE).read_text(encoding="utf-8")
    scripts = re.findall(r"<script\b[^>]*>", page)
    assert scripts and all(" src=" in script for script in scripts)
    assert not re.search(r"<style|\sstyle=|\son\w+=|https?://|data:", page)


def test_browsers_keep_what_is_named_by_its_content_and_nothing_else(built: Path) -> None:
    site = built_site(built)
    app = create_app(identify, [home_routes(site)], site=site)
    kept = {
        name: ask(app, f"/{name}", method="GET").headers["cache-control"]
        for name in (path.relative_to(built).as_posix() for path in built.rglob("*.*"))
        if not name.startswith(".")
    }
    hashed = [name for name in kept if name.startswith("assets/")]
    assert len(hashed) > 50
    assert all("immutable" in kept.pop(name) for name in hashed)
    assert kept.pop(PAGE) == "no-store"
    assert kept == dict.fromkeys(("icon.svg", "theme.js"), "no-cache")
