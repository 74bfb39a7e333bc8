"""The built site in Debian's Chromium, before servers as an operator runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from dsv2.service.store.checks import now_ms
from dsv2.service.store.settings import change_setting
from dsv2.service.store.users import add_user
from dsv2.service.web.static_files import FOLDER, PAGE
from tests.service.running import Running, running
from tests.service.store.make import cheap_passwords
from tests.site.scripted import Scripted, scripted_site
from tests.site.visiting import PATIENCE, Visit, visiting
from tests.site.world import ADMIN, hashed_password, opened

REQUIRED = "DSV2_REQUIRE_BROWSER"
"""An environment variable: fail where there is no browser, instead of skipping."""
WEB = Path(__file__).parents[2] / "web"

Open = Callable[..., Visit]


def _missing(message: str) -> NoReturn:
    if os.environ.get(REQUIRED):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def built() -> Path:
    """The folder of the built site."""
    done = subprocess.run(
        [sys.executable, WEB / "npm.py", "built"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        _missing(f"THE SITE IS NOT BUILT from these sources: run `make serve`\n{done.stderr}")
    assert (FOLDER / PAGE).is_file()
    return FOLDER


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium without a window; not for longer, since its loop of events runs meanwhile."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if program is None:
        _missing("THERE IS NO CHROMIUM: the site was not tested (Debian: apt-get install chromium)")
    arguments = ["--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=program, args=arguments)
        expect.set_options(timeout=PATIENCE)
        yield made
        made.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Opens profiles at servers; what they must not see fails the test."""
    with ExitStack() as stack:
        yield lambda address, **options: stack.enter_context(visiting(browser, address, **options))


@pytest.fixture(scope="session")
def server(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that knows a guest, for tests that do not end it."""
    with running(tmp_path_factory.mktemp("site") / "data") as one:
        yield one


@pytest.fixture(scope="session")
def platform(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that knows no guest, an administrator, and gives new accounts nothing."""
    with running(tmp_path_factory.mktemp("platform") / "data", "--no-guest") as server:
        with opened(server) as store:
            cheap_passwords(store, now_ms())
            hashed = hashed_password(store)
            with store.write() as db:
                now = now_ms()
                add_user(db, ADMIN, now=now, password_hash=hashed, role="admin", unlimited=True)
                change_setting(db, "sign_up_grant", 0, actor="cli", now=now)
        yield server


@pytest.fixture
def scripted(built: Path, tmp_path: Path) -> Iterator[Scripted]:
    """The site before an engine that follows the test."""
    with scripted_site(tmp_path) as site:
        yield site
