"""Code completion: the model writes what is missing at the cursor."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from dsv2.engine.request import OverloadedError
from dsv2.service.inference import failures
from tests.service.running import Running
from tests.site.conftest import Open
from tests.site.scripted import FAR, Scripted

pytestmark = pytest.mark.slow


def test_the_model_fills_a_gap(server: Running, visit: Open) -> None:
    page = visit(server.address).open("/fill")
    code = page.get_by_role("textbox", name="Code")
    code.fill("def add(a, b):\n    return ")
    code.press("Control+End")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens").fill("12")
    code.press("Control+Enter")
    expect(page.get_by_role("status").filter(has_text="filled in")).to_be_visible()
    filled = code.input_value()
    assert filled == "def add(a, b):\n    return a + b"
    marked = "".join(page.locator("pre .filled").all_inner_texts())
    assert marked == "a + b"
    page.get_by_role("button", name="Undo").click()
    expect(code).to_have_value("def add(a, b):\n    return ")


def test_what_is_before_and_behind_the_cursor_is_read(scripted: Scripted, visit: Open) -> None:
    scripted.text, scripted.pause = "a + b", 0.01
    page = visit(scripted.address).open("/fill")
    page.get_by_label("Example").select_option("SQL")
    code = page.get_by_role("textbox", name="Code")
    code.fill("x = ()\n")
    code.evaluate("(field) => field.setSelectionRange(5, 5)")
    page.get_by_role("button", name="Fill in").click()
    expect(code).to_have_value("x = (a + b)\n")
    prompt = scripted.tokenizer.decode(scripted.engine.requests[-1].prompt_ids)
    assert "x = (" in prompt and prompt.index("x = (") < prompt.index(")\n")


def test_errors_are_shown_and_tried_again(
    scripted: Scripted, visit: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(failures._AGAIN, "Retry-After", "2")  # seconds that it waits
    scripted.allowed, scripted.error = 0, OverloadedError("the line is full")
    scripted.text = "done"
    here = visit(scripted.address)
    here.expect("status of 503")
    page = here.open("/fill")
    code = page.get_by_role("textbox", name="Code")
    code.fill("x = ")
    page.get_by_role("button", name="Fill in").click()
    notice = page.get_by_text("The server is busy. Wait a moment.")
    expect(notice).to_be_visible()
    expect(code).to_have_value("x = ")
    scripted.allowed = FAR
    expect(page.get_by_role("button", name=re.compile("^Again in [12] s$"))).to_be_disabled()
    page.get_by_role("button", name="Try again").click()
    expect(code).to_have_value("x = done")
    expect(notice).to_have_count(0)


def test_stopping_a_filling_keeps_what_came(scripted: Scripted, visit: Open) -> None:
    scripted.text, scripted.allowed = "abcdefghi", 2
    page = visit(scripted.address).open("/fill")
    code = page.get_by_role("textbox", name="Code")
    code.fill("x = ")
    page.get_by_role("button", name="Fill in").click()
    expect(code).to_have_value("x = abcdef")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Fill in")).to_be_enabled()
    expect(code).to_have_value("x = abcdef")
