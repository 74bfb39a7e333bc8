"""What somebody does who has just installed it: chats, comes back, makes a key, uses it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.service.running import Running, running
from tests.site.conftest import Open
from tests.site.judging import problems_of
from tests.site.visiting import (
    CALM,
    ENDLESS,
    WISH,
    answers,
    ask,
    begin,
    choose,
    composer,
    configure,
    download,
    ended,
    has_words,
    questions,
    words_of,
)

pytestmark = pytest.mark.slow

_COUNT_DRAWINGS = """() => {
  window.drawn = new Set();
  new MutationObserver(() => {
    const answer = document.querySelector('article[aria-busy="true"]');
    if (answer) window.drawn.add(answer.textContent.trim().length);
  }).observe(document.body, { childList: true, characterData: true, subtree: true });
}"""


def test_chats_comes_back_and_uses_a_key(built: Path, visit: Open, tmp_path: Path) -> None:
    with running(tmp_path / "data", by_make=True) as server:
        port = server.address.rpartition(":")[2]
        here = visit(server.address)
        here.expect("ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET")  # while it restarts
        page = here.open()
        expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("work on"))
        an_answer_streams(page)
        an_answer_is_stopped_repeated_and_continued(page)
        a_message_is_edited(page)
        address = page.url
        assert server.stop() == 0
    with running(tmp_path / "data", "--port", port) as server:
        page.reload()
        expect(questions(page).last).to_contain_text("What is 17 + 25?")
        page.get_by_role("link", name="New chat").click()
        page.get_by_role("searchbox").fill("17 + 25")
        found = page.get_by_role("navigation", name="Chats").get_by_role("listitem")
        expect(found).to_have_count(1)
        page.get_by_role("searchbox").fill("nothing of the kind")
        expect(page.get_by_text("No chat matches.")).to_be_visible()
        page.get_by_role("searchbox").fill("17 + 25")
        found.get_by_role("link").click()
        expect(page).to_have_url(address)
        expect(answers(page).last).to_contain_text("42")
        a_key_is_made_and_used(page, server)


def an_answer_streams(page: Page) -> None:
    configure(page, **CALM)
    page.evaluate(_COUNT_DRAWINGS)
    answer = ask(page, "Write a Python function that checks if a number is prime.")
    assert len(page.evaluate("[...window.drawn]")) > 5  # it came word by word
    code = answer.locator("pre code")
    expect(code).to_contain_text("def is_prime(n: int) -> bool:")
    expect(code.locator(".hl-keyword").first).to_have_text("def")
    expect(page).to_have_url(re.compile(r"/c/\w+$"))
    expect(page).to_have_title(re.compile("^Write a Python function"))
    expect(composer(page)).to_be_empty()


def an_answer_is_stopped_repeated_and_continued(page: Page) -> None:
    configure(page, **ENDLESS)
    answer = begin(page, WISH)
    has_words(answer, 20)
    page.get_by_role("button", name="Stop the answer").click()
    expect(ended(answer).get_by_text("Stopped", exact=True)).to_be_visible()
    first = words_of(answer).text_content()
    answer.get_by_role("button", name="Answer again").click()
    expect(answers(page).last).to_have_attribute("aria-busy", "true")
    has_words(answer, 20)
    composer(page).press("Escape")
    ended(answer)
    version = answer.get_by_role("img", name=re.compile("Version"))
    expect(version).to_have_accessible_name("Version 2 of 2")
    answer.get_by_role("button", name="Previous version").click()
    expect(version).to_have_accessible_name("Version 1 of 2")
    assert words_of(answer).text_content() == first
    answer.get_by_role("button", name="Continue the answer").click()
    has_words(answer, len(first or "") + 20)
    page.get_by_role("button", name="Stop the answer").click()
    ended(answer)
    assert (words_of(answer).text_content() or "").startswith((first or "")[:-10])
    expect(version).to_have_accessible_name("Version 1 of 2")


def a_message_is_edited(page: Page) -> None:
    configure(page, **CALM)
    question = questions(page).last
    question.hover()
    question.get_by_role("button", name="Edit the message").click()
    field = question.get_by_role("textbox", name="Edit the message")
    expect(field).to_have_value(WISH)
    field.fill("What is 17 + 25?")
    question.get_by_role("button", name="Send").click()
    expect(answers(page).last).to_contain_text("42")
    ended(answers(page).last)
    version = question.get_by_role("img", name=re.compile("Version"))
    expect(version).to_have_accessible_name("Version 2 of 2")
    question.get_by_role("button", name="Previous version").click()
    expect(question).to_contain_text(WISH)
    question.get_by_role("button", name="Next version").click()
    expect(question).to_contain_text("What is 17 + 25?")


def a_key_is_made_and_used(page: Page, server: Running) -> None:
    choose(page, "Guest on this machine", "Log in")
    page.get_by_role("link", name="Sign up").click()
    page.get_by_label("E-mail address").fill("new@example.org")
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Sign up").click()
    expect(page.get_by_role("button", name="new@example.org")).to_be_visible()
    # The guest's conversations stay the guest's.
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("work on"))
    expect(page.get_by_role("navigation", name="Chats").get_by_role("listitem")).to_have_count(0)
    choose(page, "new@example.org", "Account")
    page.get_by_role("link", name="API keys").click()
    page.get_by_role("button", name="Create a key").click()
    page.get_by_role("dialog").get_by_label("Name").fill("my laptop")
    page.get_by_role("dialog").get_by_role("button", name="Create a key").click()
    shown = page.get_by_role("dialog", name="Your new key")
    assert problems_of(page) == []
    secret = shown.locator("code").inner_text()
    command = shown.locator("pre").inner_text()
    assert command.startswith(f"curl {server.address}/v1/") and secret in command
    shown.get_by_role("button", name="I have kept it").click()
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["message"]["content"], answer
    tokens = answer["usage"]
    page.get_by_role("link", name="Usage").click()
    row = page.get_by_role("row").filter(has_text="my laptop")
    for count in (tokens["prompt_tokens"], tokens["completion_tokens"]):
        expect(row.get_by_role("cell", name=str(count), exact=True)).to_be_visible()


def test_chats_are_renamed_tagged_taken_out_and_in_and_deleted(
    server: Running, visit: Open, tmp_path: Path
) -> None:
    page = visit(server.address).open()
    configure(page, **CALM)
    ask(page, "What is 12 + 30?")
    title = "Sums, and 中文 too"
    chats = page.get_by_role("navigation", name="Chats")
    choose(page, "Options of", "Rename")
    page.get_by_role("dialog").get_by_label("Title").fill(title)
    page.keyboard.press("Enter")
    expect(chats.get_by_role("link", name=title)).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_text(title)
    choose(page, f"Options of {title}", "Edit tags")
    page.get_by_role("dialog").get_by_label("Tags").fill("arithmetic, 数学")
    page.keyboard.press("Enter")
    tags = page.get_by_role("group", name="Tags")
    expect(tags.get_by_role("button")).to_have_text(["arithmetic", "数学"])
    ask_elsewhere(page)
    first = chats.get_by_role("listitem").first
    expect(first).to_contain_text("Hello!")
    choose(page, f"Options of {title}", "Pin")
    expect(chats.get_by_role("heading", name="Pinned")).to_be_visible()
    expect(first).to_contain_text(title)
    choose(page, f"Options of {title}", "Unpin")
    expect(first).to_contain_text("Hello!")
    tags.get_by_role("button", name="数学").click()
    expect(chats.get_by_role("listitem")).to_have_count(1)
    chats.get_by_role("link", name=title).click()
    tags.get_by_role("button", name="数学").click()
    files = {form: exported(page, title, form) for form in ("Markdown", "JSON")}
    name, content = files["Markdown"]
    assert name.endswith(".md") and content.decode().startswith(f"# {title}\n\n")
    assert "\n## User\n\nWhat is" in content.decode()
    name, content = files["JSON"]
    [one] = json.loads(content)["conversations"]
    assert one["title"] == title and one["tags"] == ["arithmetic", "数学"]
    page.get_by_role("button", name="Import and export").click()
    _, everything = download(page, page.get_by_role("menuitem", name="Export all chats"))
    assert one in json.loads(everything)["conversations"]
    choose(page, f"Options of {title}", "Delete")
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(chats.get_by_role("link", name=title)).to_have_count(0)
    expect(page).to_have_url(server.address + "/")
    expect(tags.get_by_role("button", name="数学")).to_have_count(0)
    kept = tmp_path / name
    kept.write_bytes(content)
    with page.expect_file_chooser() as chooser:
        choose(page, "Import and export", "Import chats")
    chooser.value.set_files(kept)
    expect(page.get_by_text("1 chat imported")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_text(title)
    expect(answers(page).last).to_contain_text("42")
    kept.write_text("not JSON")
    with page.expect_file_chooser() as chooser:
        choose(page, "Import and export", "Import chats")
    chooser.value.set_files(kept)
    expect(page.get_by_text("is not a file of chats")).to_be_visible()


def ask_elsewhere(page: Page) -> None:
    page.get_by_role("link", name="New chat").click()
    ask(page, "Hello!")


def exported(page: Page, title: str, form: str) -> tuple[str, bytes]:
    page.get_by_role("button", name=f"Options of {title}").last.click()
    return download(page, page.get_by_role("menuitem", name=f"Export as {form}"))
