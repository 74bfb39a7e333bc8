"""A browser that visits a server, and what it must never see while it does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page, Request, expect

PATIENCE = 20_000
"""Milliseconds until something that must come is missed; machines are busy."""

ENDLESS = {"Temperature": "0", "Frequency_penalty": "-2", "Most_tokens": "1500"}
"""Settings with which the shipped model repeats itself once it has, for some ten seconds."""
WISH = "Write a Python function that merges two sorted lists, with tests"
"""Something that it begins to repeat itself with."""
CALM = {"Temperature": "0", "Frequency_penalty": "", "Most_tokens": ""}
"""Settings with which it says the same each time."""

_WATCH = """
addEventListener('securitypolicyviolation', (event) =>
  siteProblem(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`));
for (const name of ['alert', 'confirm', 'prompt', 'print', 'open'])
  window[name] = () => siteProblem(`${name} was called`);
"""


class Visit:
    """One browser profile at one server.

    Args:
        browser: that is running.
        address: of the server; nothing may be fetched from anywhere else.
        options: of the profile, such as ``color_scheme``.

    Attributes:
        problems: what was seen that must not be: requests that leave the server, errors of scripts
            or in the console, dialogs, violations of the page's policy.
    """

    def __init__(self, browser: Browser, address: str, **options: Any) -> None:
        self.address, self.problems = address, list[str]()
        self._expected: list[re.Pattern[str]] = []
        known: dict[str, Any] = {
            "locale": "en-GB",
            "viewport": {"width": 1280, "height": 820},
            "reduced_motion": "reduce",
            "base_url": address,
        }
        self.context = browser.new_context(**known | options)
        self.context.set_default_timeout(PATIENCE)
        self.context.expose_function("siteProblem", self._note)
        self.context.add_init_script(_WATCH)
        self.context.on("request", self._on_request)
        self.context.on("weberror", lambda error: self._note(f"uncaught: {error.error}"))
        self.context.on("console", self._on_console)
        self.context.on("dialog", self._on_dialog)

    def expect(self, pattern: str) -> None:
        """Let the console complain of what the test brings about."""
        self._expected.append(re.compile(pattern))

    def open(self, path: str = "/") -> Page:
        """A new tab, once its page is drawn."""
        page = self.context.new_page()
        return self.go(page, path)

    def go(self, page: Page, path: str) -> Page:
        """Another address of the server, once its page is drawn."""
        page.goto(self.address + path)
        expect(page.locator("h1, h2").first).to_be_attached()
        return page

    def close(self) -> None:
        """End it, and tell what was wrong."""
        self.context.close()
        assert not self.problems, "\n".join(self.problems)

    def _note(self, problem: str) -> None:
        if not any(pattern.search(problem) for pattern in self._expected):
            self.problems.append(problem)

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((self.address + "/", "data:image/", "blob:")):
            self._note(f"fetched {request.url}")

    def _on_console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self._note(f"console: {message.text} ({message.location.get('url')})")

    def _on_dialog(self, dialog: Any) -> None:
        self._note(f"dialog: {dialog.message}")
        dialog.dismiss()


@contextmanager
def visiting(browser: Browser, address: str, **options: Any) -> Iterator[Visit]:
    """A visit that ends with the block; what was wrong fails it unless it has failed already."""
    visit = Visit(browser, address, **options)
    try:
        yield visit
    except BaseException:
        visit.context.close()
        raise
    visit.close()


def composer(page: Page) -> Locator:
    """Where messages are written."""
    return page.get_by_role("textbox", name="Message", exact=True)


def answers(page: Page) -> Locator:
    """The answers of the branch that is shown."""
    return page.get_by_role("article", name="Answer", exact=True)


def questions(page: Page) -> Locator:
    """The user's messages of the branch that is shown."""
    return page.get_by_role("article", name="Your message")


def begin(page: Page, text: str) -> Locator:
    """Send a message; its answer, which may not have a word yet."""
    before = answers(page).count()
    composer(page).fill(text)
    # While an answer runs, even one whose text is all there, Enter sends nothing.
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_enabled()
    composer(page).press("Enter")
    expect(answers(page)).to_have_count(before + 1)
    return answers(page).last


def ask(page: Page, text: str) -> Locator:
    """Send a message; its answer once it is whole."""
    return ended(begin(page, text))


def ended(answer: Locator) -> Locator:
    """An answer once it is no longer running."""
    expect(answer).to_have_attribute("aria-busy", "false")
    return answer


def has_words(answer: Locator, more_than: int = 0) -> str:
    """The text of an answer once it has more than so many characters."""
    words = words_of(answer)
    expect(words).to_have_text(re.compile(rf"[\s\S]{{{more_than + 1},}}"))
    return words.inner_text()


def words_of(answer: Locator) -> Locator:
    """What the model said, without the buttons around it."""
    return answer.locator("> .prose")


def configure(page: Page, **fields: str) -> None:
    """Set fields of the chat's settings by their labels; underscores are spaces."""
    page.get_by_role("button", name="Chat settings").first.click()
    sheet = page.get_by_role("dialog", name="Chat settings")
    more = sheet.locator("details")
    if more.get_attribute("open") is None:
        sheet.get_by_text("More parameters").click()
    for label, value in fields.items():
        field = sheet.get_by_label(label.replace("_", " "), exact=True)
        field.fill(value)
        field.blur()
    sheet.get_by_role("button", name="Save", exact=True).click()
    expect(sheet).to_be_hidden()


def choose(page: Page, menu: str, item: str) -> None:
    """Open a menu by the name of its button, and take an item."""
    page.get_by_role("button", name=menu).last.click()
    here = page.get_by_role("menu")
    kinds = here.get_by_role("menuitem", name=item), here.get_by_role("menuitemradio", name=item)
    kinds[0].or_(kinds[1]).click()


def download(page: Page, press: Locator) -> tuple[str, bytes]:
    """Name and content of the file that a button gives."""
    with page.expect_download() as coming:
        press.click()
    path = coming.value.path()
    return coming.value.suggested_filename, Path(path).read_bytes()
