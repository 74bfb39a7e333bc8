"""Every page as people see it: complete, by WCAG's rules, and as pictures for the documentation.

``DSV2_SCREENSHOTS=1`` writes the pictures of the documentation anew.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.service.running import Running
from tests.site.conftest import Open
from tests.site.judging import problems_of
from tests.site.visiting import Visit, answers
from tests.site.world import MAIN, PASSWORD, RESIDENT, STORED, World, settled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FOR_DOCS = bool(os.environ.get("DSV2_SCREENSHOTS"))
FOLDER = Path(__file__).parents[2] / "docs" / "img" / "site"
MOST_BYTES = 150_000
OF_COLOURS = ("color-contrast", "link-in-text-block")
"""axe's rules that another theme can break; the rest of a page is the same in all."""
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
        is_kept: whether the documentation has a picture of it.
    """

    words: str
    path: str
    act: Callable[[Page], None] | None = None
    is_kept: bool = False


def colour_tokens(page: Page) -> None:
    answer = answers(page).nth(1)
    answer.get_by_role("button", name="Colour tokens by probability").click()
    for _ in range(5):  # to a token that was not certain
        answer.get_by_role("group", name="Tokens; arrow keys").press("ArrowRight")
    answer.get_by_role("button", name="Tokens and speed").click()
    answer.scroll_into_view_if_needed()


def open_settings(page: Page) -> None:
    page.get_by_role("button", name="Chat settings").first.click()


def fill_in(page: Page) -> None:
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens").fill("48")
    page.get_by_role("button", name="Fill in").click()


def watch_engines(page: Page) -> None:
    line = page.get_by_role("img", name="Tokens per second").locator("polyline")
    points = 24 if FOR_DOCS else 2
    page.wait_for_function(
        "([line, points]) => line.points.numberOfItems >= points",
        arg=[line.element_handle(), points], timeout=90_000,
    )  # fmt: skip


def by_key(page: Page) -> None:
    page.get_by_label("Grouped by").select_option("by key")


def click(name: str, role: str = "button") -> Callable[[Page], None]:
    return lambda page: page.get_by_role(role, name=name).first.click()  # type: ignore[arg-type]


def help_sheet(page: Page) -> None:
    page.evaluate("document.activeElement?.blur()")
    page.keyboard.press("?")


SHOTS: dict[str, Shot] = {
    "new": Shot("What would you like to work on?", "/", is_kept=True),
    "chat": Shot("只保存低秩潜向量", "{stored}", is_kept=True),
    "answers": Shot("17 + 25 = 42", "{main}"),
    "tokens": Shot("instead:", "{main}", colour_tokens, is_kept=True),
    "settings": Shot("System prompt", "{main}", open_settings, is_kept=True),
    "help": Shot("Keyboard shortcuts", "/", help_sheet),
    "missing": Shot("There is no such page", "/no/such/page"),
    "fill": Shot("fills in at the cursor", "/fill", is_kept=True),
    "filled": Shot("filled in", "/fill", fill_in),
    "profile": Shot("Log out everywhere", "/account"),
    "keys": Shot("$20.00 each month", "/account/keys", is_kept=True),
    "key": Shot("Only these models", "/account/keys", click("Create a key")),
    "balance": Shot("Redemption code", "/account/balance"),
    "usage": Shot("evaluation", "/account/usage", by_key, is_kept=True),
    "engines": Shot("Tokens per second", "/admin", watch_engines, is_kept=True),
    "users": Shot("omar@example.org", "/admin/users"),
    "user": Shot("Move money", "{user}"),
    "all usage": Shot("From the cache", "/admin/usage"),
    "prices": Shot("Input from the cache", "/admin/prices"),
    "codes": Shot("0 / 25", "/admin/codes"),
    "site": Shot("Anybody may sign up", "/admin/settings"),
    "audit": Shot("user.status", "/admin/audit"),
}


@pytest.fixture(scope="module")
def world(platform: Running) -> World:
    return settled(platform)


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
        problems[name] = problems_of(page)
        keep(page, name, "mobile", tmp_path)
    assert {name: found for name, found in problems.items() if found} == {}


def walk(here: Visit, platform: Running, world: World) -> Iterator[tuple[str, Page]]:
    """Every page in turn, complete."""
    here.expect("status of 404")
    page = here.open("/log-in")
    yield "log in", page
    logged_in = page.request.post(
        "/api/account/log-in", data={"email": RESIDENT, "password": PASSWORD},
        headers={"Origin": platform.address},
    )  # fmt: skip
    assert logged_in.ok
    places = {"main": world.chats[MAIN], "stored": world.chats[STORED], "user": world.user}
    with ExitStack() as stack:
        if FOR_DOCS:
            stack.enter_context(_asking(platform))
        for name, shot in SHOTS.items():
            here.go(page, shot.path.format(**places))
            if shot.act is not None:
                shot.act(page)
            words = page.get_by_text(shot.words).filter(visible=True).first
            expect(words, f"{name} is not there").to_be_visible()
            expect(page.get_by_text("Loading", exact=True)).to_have_count(0)
            assert page.get_by_role("heading").first.inner_text().strip()
            yield name, page


def keep(page: Page, name: str, look: str, tmp_path: Path) -> None:
    """A picture, among the documentation's if it is one of them and they are wanted."""
    if not FOR_DOCS:
        picture = page.screenshot(animations="disabled")
        assert len(picture) > 10_000, f"{name} is empty"
        (tmp_path / f"{name}-{look}.png").write_bytes(picture)
    elif name in SHOTS and SHOTS[name].is_kept:
        picture = _small(page.screenshot(animations="disabled"))
        assert 5_000 < len(picture) < MOST_BYTES
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / f"{name}-{look}.png").write_bytes(picture)


def _small(picture: bytes) -> bytes:
    """The same in at most 256 colours."""
    made = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(made, "PNG", optimize=True)
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
