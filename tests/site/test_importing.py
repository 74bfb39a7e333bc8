"""Files of conversations that no single request could bring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.site.conftest import Open
from tests.site.scripted import Scripted
from tests.site.visiting import answers, choose, questions, words_of

pytestmark = pytest.mark.slow

MEGABYTE = 1_000_000
BOUND = 4 << 20
"""Bytes of a request that the server takes."""


def conversation(title: str, megabytes: int, **fields: Any) -> dict[str, Any]:
    messages = [
        {
            "id": f"m{place}", "parent_id": f"m{place - 1}" if place else None,
            "role": "assistant" if place % 2 else "user", "content": "x" * MEGABYTE,
        }
        for place in range(megabytes)
    ]  # fmt: skip
    return {"title": title, "messages": messages, **fields}


def bring(page: Page, file: Path, *conversations: dict[str, Any]) -> int:
    """Import a file with these; its size."""
    file.write_text(json.dumps({"conversations": conversations}))
    give(page, file)
    return file.stat().st_size


def give(page: Page, *files: Path) -> None:
    """Import files."""
    with page.expect_file_chooser() as chooser:
        choose(page, "Import and export", "Import chats")
    chooser.value.set_files(files)


def hold(page: Page, number: int) -> list[Route]:
    """Let every request of an import through but that one; the list grows by each of them."""
    asked: list[Route] = []

    def look(route: Route) -> None:
        asked.append(route)
        if len(asked) != number:
            route.continue_()

    page.route("**/api/chat/import", look)
    return asked


def test_a_file_larger_than_a_request(scripted: Scripted, visit: Open, tmp_path: Path) -> None:
    here = visit(scripted.address)
    page = here.open()
    asked = hold(page, 3)
    said = [conversation(f"Talk {place}", 1) for place in range(6)]
    assert bring(page, tmp_path / "all.json", *said) > BOUND
    sheet = page.get_by_role("dialog", name="Import chats")
    expect(sheet.get_by_text("2 of 6 chats")).to_be_visible()
    expect(sheet.get_by_role("progressbar", name="Import chats")).to_have_attribute("value", "2")
    asked[2].continue_()
    expect(page.get_by_text("6 chats imported")).to_be_visible()
    expect(sheet).to_be_hidden()
    chats = page.get_by_role("navigation", name="Chats")
    expect(chats.get_by_role("listitem")).to_have_count(6)
    page.unroute("**/api/chat/import")

    here.expect("status of 4(13|22)")
    wrong = conversation("Mistyped", 1, tags=["x" * 1000])
    small = conversation("Small", 1), conversation("Another", 1)
    bring(page, tmp_path / "some.json", small[0], conversation("Huge", 5), wrong, small[1])
    expect(sheet.get_by_text("2 chats imported")).to_be_visible()
    expect(sheet.get_by_text("2 chats were refused")).to_be_visible()
    reasons = sheet.get_by_role("listitem")
    expect(reasons.nth(0)).to_contain_text("“Huge” has 5 MB, more than this server takes")
    expect(reasons.nth(1)).to_contain_text("“Mistyped”: tags")
    sheet.get_by_role("button", name="Close").last.click()
    expect(sheet).to_be_hidden()
    expect(chats.get_by_role("listitem")).to_have_count(8)
    bring(page, tmp_path / "huge.json", conversation("Huge", 5))
    expect(page.get_by_text("“Huge” has 5 MB, more than this server takes")).to_be_visible()


def test_an_import_that_is_called_off(scripted: Scripted, visit: Open, tmp_path: Path) -> None:
    page = visit(scripted.address).open()
    asked = hold(page, 2)
    bring(page, tmp_path / "all.json", *(conversation(f"Talk {place}", 1) for place in range(4)))
    page.get_by_role("dialog", name="Import chats").get_by_role("button", name="Stop").click()
    asked[1].continue_()
    # What was under way is added too.
    expect(page.get_by_text("2 chats imported")).to_be_visible()
    chats = page.get_by_role("navigation", name="Chats").get_by_role("listitem")
    expect(chats).to_have_count(2)
    assert len(asked) == 2
    page.unroute("**/api/chat/import")
    old = conversation("Long ago", 0, tags=["rare"], updated_at=1_000_000)
    bring(page, tmp_path / "old.json", old, *(conversation("Later", 0) for _ in range(60)))
    expect(page.get_by_text("61 chats imported")).to_be_visible()
    # A tag of what is far down the list, and not loaded yet.
    page.get_by_role("group", name="Tags").get_by_role("button", name="rare").click()
    expect(chats).to_have_text(["Long ago"])


def test_markdown_comes_in_as_it_went_out(scripted: Scripted, visit: Open, tmp_path: Path) -> None:
    page = visit(scripted.address).open()
    told = "## User\n\n<!-- dsv2 user -->\n\n```\n<!-- dsv2 chat -->\n```\n<img onerror=alert(1)>"
    said = [
        {"id": "q", "parent_id": None, "role": "user", "content": "Show me an export"},
        {"id": "old", "parent_id": "q", "role": "assistant", "content": "Not shown"},
        {"id": "a", "parent_id": "q", "role": "assistant", "content": told},
    ]
    fields = {"title": "A # title", "system": "Be exact.", "messages": said, "leaf_id": "a"}
    bring(page, tmp_path / "one.json", fields)
    expect(answers(page)).to_have_count(1)
    versions = page.get_by_role("group", name="Versions")
    expect(versions).to_have_count(1)
    shown = words_of(answers(page).last).inner_text()
    with page.expect_download() as coming:
        choose(page, "Options of A # title", "Export as Markdown")
    file, other = tmp_path / "chat.txt", tmp_path / "notes.md"
    coming.value.save_as(file)
    other.write_text("# Notes\n\n## User\n\nOf another kind\n")

    first = page.url
    give(page, other, file)
    expect(page.get_by_text("notes.md is not a file of chats. JSON or Markdown")).to_be_visible()
    expect(page.get_by_text("1 chat imported").last).to_be_visible()
    expect(page).not_to_have_url(first)
    expect(page.get_by_role("heading", name="A # title")).to_be_visible()
    expect(questions(page)).to_have_count(1)
    expect(questions(page)).to_contain_text("Show me an export")
    expect(answers(page)).to_have_count(1)
    assert words_of(answers(page).last).inner_text() == shown
    expect(versions).to_have_count(0)
    page.get_by_role("button", name="Chat settings").first.click()
    sheet = page.get_by_role("dialog", name="Chat settings")
    expect(sheet.get_by_label("System prompt")).to_have_value("Be exact.")
