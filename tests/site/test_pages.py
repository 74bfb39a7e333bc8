"""Every page as people see it: complete, by WCAG's rules, and as pictures for the documentation.

``DSV2_SCREENSHOTS=1`` writes the pictures of the documentation anew.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from PIL import Image
from playwright.sync_api import Page, expect

from dsv2.service.store import models
from tests.service.running import Running
from tests.site.conftest import Open
from tests.site.judging import problems_of
from tests.site.visiting import Visit, answers
from tests.site.world import MAIN, PASSWORD, RESIDENT, STORED, World, opened, settled

FOR_DOCS = bool(os.environ.get("DSV2_SCREENSHOTS"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900 if FOR_DOCS else 300)]
FOLDER = Path(__file__).parents[2] / "docs" / "img" / "site"
MOST_BYTES = 100_000
OF_COLOURS = ("color-contrast", "link-in-text-block")
"""axe's rules that another theme can break, and no other width; the slowest of all."""
DESKTOP: dict[str, Any] = {"color_scheme": "light"}
PHONE: dict[str, Any] = {
    "viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "is_mobile": True,
    "has_touch": True,
}  # fmt: skip


@dataclass(frozen=True)
class Shot:
    """A page in a state.

    Attributes:
        words: that stand on it once it is there.
        path: where it is; ``{main}``, ``{stored}`` and ``{user}`` are places of the world.
        act: brings it into its state.
        is_over: whether it lies over a page, whose height then says nothing.
    """

    words: str
    path: str
    act: Callable[[Page], None] | None = None
    is_over: bool = False


def colour_tokens(page: Page) -> None:
    answer = answers(page).nth(1)
    answer.get_by_role("button", name="Colour tokens by probability").click()
    for _ in range(5):  # to a token that was not certain
        answer.get_by_role("group", name="Tokens; arrow keys").press("ArrowRight")
    answer.get_by_role("button", name="Tokens and speed").click()


def fill_in(page: Page) -> None:
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("button", name="Fill in").click()


def watch_engines(page: Page) -> None:
    line = page.get_by_role("img", name="Tokens per second").locator("polyline")
    points = 58 if FOR_DOCS else 1
    page.wait_for_function(
        "([line, points]) => line.points.numberOfItems >= points",
        arg=[line.element_handle(), points], timeout=180_000,
    )  # fmt: skip


def by_key(page: Page) -> None:
    page.get_by_label("Grouped by").select_option("by key")


def by_account(page: Page) -> None:
    page.get_by_label("Grouped by").select_option("by account")


def click(name: str, role: str = "button") -> Callable[[Page], None]:
    return lambda page: page.get_by_role(role, name=name).first.click()  # type: ignore[arg-type]


def open_route(page: Page) -> None:
    page.locator("summary", has_text="/v1/completions").click()
    page.locator(".page > .scroll").evaluate("(page) => page.scrollTo(0, 0)")


def help_sheet(page: Page) -> None:
    page.evaluate("document.activeElement?.blur()")
    page.keyboard.press("?")


def ask_whether(page: Page) -> None:
    page.get_by_role("button", name="Options of What is MLA?").last.click()
    page.get_by_role("menuitem", name="Delete").click()


def toggle_sidebar(page: Page) -> None:
    """A drawer over the page on a phone, and beside it away."""
    page.get_by_role("button", name=re.compile("(Open|Close) the sidebar")).first.click()


SHOTS: dict[str, Shot] = {
    "new": Shot("What would you like to work on?", "/"),
    "chat": Shot("只保存低秩潜向量", "{stored}"),
    "answers": Shot("17 + 25 = 42", "{main}"),
    "tokens": Shot("instead:", "{main}", colour_tokens),
    "settings": Shot("System prompt", "{main}", click("Chat settings"), is_over=True),
    "menu": Shot("Export as Markdown", "{main}", click("Options of What is MLA?"), is_over=True),
    "delete": Shot("Delete this chat?", "{main}", ask_whether, is_over=True),
    "help": Shot("Keyboard shortcuts", "/", help_sheet, is_over=True),
    "missing": Shot("There is no such page", "/no/such/page"),
    "fill": Shot("filled in", "/fill", fill_in),
    "profile": Shot("Log out everywhere", "/account"),
    "keys": Shot("$20.00 each month", "/account/keys"),
    "key": Shot("Only these models", "/account/keys", click("Create a key"), is_over=True),
    "balance": Shot("Redemption code", "/account/balance"),
    "usage": Shot("evaluation", "/account/usage", by_key),
    "api": Shot("Most tokens of an answer", "/docs", open_route),
    "engines": Shot("Tokens per second", "/admin", watch_engines),
    "users": Shot("omar@example.org", "/admin/users"),
    "user": Shot("Move money", "{user}"),
    "all-usage": Shot("ines@example.org", "/admin/usage", by_account),
    "prices": Shot("Input from the cache", "/admin/prices"),
    "codes": Shot("0 / 25", "/admin/codes"),
    "site": Shot("Anybody may sign up", "/admin/settings"),
    "audit": Shot("user.status", "/admin/audit"),
    # The last: a sidebar stays as it was left.
    "sidebar": Shot("What would you like to work on?", "/", toggle_sidebar, is_over=True),
}


@pytest.fixture(scope="module")
def world(platform: Running) -> World:
    made = settled(platform)
    if FOR_DOCS:  # which show no settings of tests
        with opened(platform) as store, store.write() as db:
            db.execute(sa.delete(models.settings))
    return made


_SETTLE = """async () => {
  for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);
  await Promise.allSettled(document.getAnimations().map((one) => one.finished));
}"""


def test_every_page_in_light_and_dark(
    platform: Running, world: World, visit: Open, tmp_path: Path
) -> None:
    here = visit(platform.address, **DESKTOP)
    problems = {}
    for name, page in walk(here, platform, world):
        problems[f"{name} in light"] = problems_of(page)
        keep(page, name, "light", tmp_path)
        page.emulate_media(color_scheme="dark")
        page.evaluate(_SETTLE)
        problems[f"{name} in dark"] = problems_of(page, *OF_COLOURS)
        keep(page, name, "dark", tmp_path)
        page.emulate_media(color_scheme="light")
    assert {name: found for name, found in problems.items() if found} == {}


def test_every_page_on_a_phone(
    platform: Running, world: World, visit: Open, tmp_path: Path
) -> None:
    here = visit(platform.address, **PHONE)
    problems = {}
    for name, page in walk(here, platform, world):
        problems[name] = problems_of(page, but=OF_COLOURS)
        keep(page, name, "mobile", tmp_path)
    assert {name: found for name, found in problems.items() if found} == {}


def walk(here: Visit, platform: Running, world: World) -> Iterator[tuple[str, Page]]:
    """Every page in turn, complete."""
    here.expect("status of 404")
    page = here.open("/log-in")
    yield "log-in", page
    here.go(page, "/sign-up")
    yield "sign-up", page
    logged_in = page.request.post(
        "/api/account/log-in", data={"email": RESIDENT, "password": PASSWORD},
        headers={"Origin": platform.address},
    )  # fmt: skip
    assert logged_in.ok
    places = {"main": world.chats[MAIN], "stored": world.chats[STORED], "user": world.user}
    for name, shot in SHOTS.items():
        here.go(page, shot.path.format(**places))
        with _asking(platform) if FOR_DOCS and name == "engines" else nullcontext():
            if shot.act is not None:
                shot.act(page)
        words = page.get_by_text(shot.words).filter(visible=True).first
        expect(words, f"{name} is not there").to_be_visible()
        expect(page.get_by_text("Loading", exact=True)).to_have_count(0)
        assert page.get_by_role("heading").first.inner_text().strip()
        yield name, page


def keep(page: Page, name: str, look: str, tmp_path: Path) -> None:
    """A picture for the documentation, if they are wanted; else of one page, to see that it can."""
    if not FOR_DOCS and name != "new":
        return
    page.mouse.move(0, 0)
    with _whole(page, name):
        page.evaluate(_SETTLE)
        picture = _small(page.screenshot(animations="disabled"))
    assert 3_000 < len(picture) < MOST_BYTES, f"{name} has {len(picture)} bytes"
    folder = FOLDER if FOR_DOCS else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-{look}.webp").write_bytes(picture)


@contextmanager
def _whole(page: Page, name: str) -> Iterator[None]:
    """As high as a page of forms and tables needs, so that nothing of it is cut."""
    before = page.viewport_size
    assert before is not None
    if name not in SHOTS or not SHOTS[name].is_over:
        over = int(page.evaluate(_OVER))
        most = 2 * before["height"]
        height = min(before["height"] + over, most)
        page.set_viewport_size({"width": before["width"], "height": height})
    yield
    page.set_viewport_size(before)


_OVER = """() => {
  const page = document.querySelector('.page > .scroll, .page > .body, .scroller');
  return page ? page.scrollHeight - page.clientHeight : 0;
}"""


def _small(picture: bytes) -> bytes:
    """The same, every pixel of it."""
    made = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        image.convert("RGB").save(made, "WEBP", lossless=True, quality=80, method=4)
    return made.getvalue()


@contextmanager
def _asking(server: Running) -> Iterator[None]:
    """Programs that use the API meanwhile, now more and now fewer."""
    over = Event()

    def ask(number: int) -> None:
        headers = {"Authorization": f"Bearer {server.key}"}
        rules = " ".join(f"{place} + {place} = {2 * place}." for place in range(10, 60))
        said = [
            {"role": "system", "content": rules},
            {"role": "user", "content": f"What is {20 + number} + 25?"},
        ]
        body = {"model": "pocket", "messages": said, "max_tokens": 200}
        with httpx.Client(base_url=server.address, headers=headers, timeout=60) as program:
            while not over.wait(0.3 * number):
                program.post("/v1/chat/completions", json=body).raise_for_status()

    threads = [Thread(target=ask, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(60)
