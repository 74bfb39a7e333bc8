"""Who works with keys is never thrown back to the page's top."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.service.running import Running
from tests.site.conftest import Open
from tests.site.judging import problems_of
from tests.site.scripted import FAR, Scripted
from tests.site.visiting import answers, ask, begin, composer, ended, has_words, questions

pytestmark = pytest.mark.slow


def press(button: Locator, key: str = "Enter") -> None:
    """As by somebody who came there by keys."""
    button.focus()
    button.press(key)


def test_messages_that_are_asked_for_anew(scripted: Scripted, visit: Open) -> None:
    page = visit(scripted.address).open()
    ask(page, "First?")
    answer = ask(page, "Again?")
    press(answer.get_by_role("button", name="Answer again"))
    versions = answers(page).last.get_by_role("img", name="Version 2 of 2")
    expect(versions).to_be_attached()
    expect(composer(page)).to_be_focused()

    press(answers(page).last.get_by_role("button", name="Previous version"))
    expect(answers(page).last.get_by_role("img", name="Version 1 of 2")).to_be_attached()
    expect(answers(page).last.get_by_role("button", name="Next version")).to_be_focused()
    page.keyboard.press("Enter")
    expect(versions).to_be_attached()
    expect(answers(page).last.get_by_role("button", name="Previous version")).to_be_focused()

    edit = questions(page).last.get_by_role("button", name="Edit the message")
    press(edit)
    page.keyboard.press("Escape")
    expect(edit).to_be_focused()
    press(edit)
    press(questions(page).last.get_by_role("button", name="Cancel"))
    expect(edit).to_be_focused()
    composer(page).focus()
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("textbox", name="Edit the message")).to_be_focused()
    page.keyboard.press("Escape")
    expect(composer(page)).to_be_focused()
    press(edit)
    page.keyboard.type(" Really?")
    page.keyboard.press("Control+Enter")
    expect(questions(page).last).to_contain_text("Really?")
    expect(composer(page)).to_be_focused()


def test_an_answer_that_is_stopped_and_goes_on(scripted: Scripted, visit: Open) -> None:
    page = visit(scripted.address).open()
    scripted.text, scripted.allowed = "Many words in a row.", 2
    composer(page).fill("Talk.")
    press(page.get_by_role("button", name="Send", exact=True))
    expect(composer(page)).to_be_focused()
    has_words(answers(page).last)
    expect(said(page)).to_have_text("The model is answering")
    assert problems_of(page) == []
    press(page.get_by_role("button", name="Stop the answer"))
    answer = ended(answers(page).last)
    expect(said(page)).to_have_text("Stopped")
    expect(composer(page)).to_be_focused()
    scripted.allowed = FAR
    press(answer.get_by_role("button", name="Continue the answer"))
    expect(composer(page)).to_be_focused()
    ended(answer)
    expect(said(page)).to_have_text("The answer is complete")
    scripted.allowed, scripted.error = 0, RuntimeError("as wanted")
    failed = ended(begin(page, "Once more?"))
    expect(failed.get_by_role("alert")).to_contain_text("That did not work.")
    expect(said(page)).to_be_empty()  # the alert is read by itself
    scripted.allowed = FAR
    press(failed.get_by_role("button", name="Try again"))
    expect(ended(answers(page).last)).to_contain_text("Many words")
    expect(composer(page)).to_be_focused()


def said(page: Page) -> Locator:
    """What is told of the answer to who does not see it."""
    return page.locator("main .around + [role=status]")


def test_the_sidebar_takes_focus_and_gives_it_back(server: Running, visit: Open) -> None:
    here = visit(server.address)
    page = here.open()
    hides = page.get_by_role("button", name="Close the sidebar")
    shows = page.get_by_role("button", name="Open the sidebar")
    expect(composer(page)).to_be_focused()
    page.keyboard.press("Control+Shift+S")
    expect(shows).to_have_attribute("aria-expanded", "false")
    expect(composer(page)).to_be_focused()  # which nothing has taken away
    press(shows)
    expect(hides).to_be_focused()
    expect(hides).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Enter")
    expect(shows).to_be_focused()

    # Where there is little room it lies over the page.
    page.set_viewport_size({"width": 360, "height": 740})
    press(shows)
    expect(hides.first).to_be_focused()
    assert problems_of(page) == []
    for _ in range(12):
        page.keyboard.press("Tab")
        assert not page.evaluate("document.activeElement.matches('main, main *')")
    page.get_by_role("searchbox").focus()
    page.keyboard.press("Escape")
    expect(page.get_by_role("searchbox")).to_have_count(0)
    expect(shows).to_be_focused()
    composer(page).focus()
    page.keyboard.press("Control+Shift+S")
    expect(hides.first).to_be_focused()
    hides.last.click(position={"x": 340, "y": 300})  # beside it
    expect(shows).to_be_focused()
    page.keyboard.press("Enter")
    page.get_by_role("link", name="Code completion").press("Enter")
    expect(page.get_by_role("heading", name="Code completion")).to_be_focused()


def chat_of(page: Page, name: str) -> Locator:
    return page.get_by_role("navigation", name="Chats").get_by_role("link", name=name)


def test_chats_that_are_deleted_and_dialogs_that_close(scripted: Scripted, visit: Open) -> None:
    page = visit(scripted.address).open()
    for name in ("One", "Two", "Three"):
        page.get_by_role("link", name="New chat").click()
        ask(page, name)
        expect(chat_of(page, name)).to_be_visible()

    options = page.get_by_role("button", name="Options of Two")
    dialog = page.get_by_role("dialog")
    choose_by_keys(options, "Delete")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(options).to_be_focused()
    choose_by_keys(options, "Rename")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(options).to_be_focused()
    choose_by_keys(options, "Delete")
    press(dialog.get_by_role("button", name="Delete"))
    expect(chat_of(page, "Two")).to_have_count(0)
    expect(chat_of(page, "One")).to_be_focused()
    choose_by_keys(page.get_by_role("button", name="Options of One"), "Delete")
    press(dialog.get_by_role("button", name="Delete"))
    expect(chat_of(page, "Three")).to_be_focused()

    settings = page.get_by_role("button", name="Chat settings").first
    press(settings)
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(settings).to_be_focused()
    press(settings)
    press(dialog.get_by_role("button", name="Save", exact=True))
    expect(dialog).to_be_hidden()
    expect(settings).to_be_focused()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(settings).to_be_focused()

    # The one that is open, which the page leaves.
    choose_by_keys(page.get_by_role("button", name="Options of Three").last, "Delete")
    press(dialog.get_by_role("button", name="Delete"))
    expect(page.get_by_role("heading", level=1)).to_have_text("What would you like to work on?")
    expect(composer(page)).to_be_focused()


def choose_by_keys(button: Locator, item: str) -> None:
    press(button)
    press(button.page.get_by_role("menuitem", name=item))
