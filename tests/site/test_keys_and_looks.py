"""Keys, languages, themes, narrow screens; and what the server says with every page."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.service.running import Running
from tests.site.conftest import Open
from tests.site.scripted import Scripted
from tests.site.visiting import (
    answers,
    ask,
    choose,
    composer,
    configure,
    ended,
    questions,
    words_of,
)

pytestmark = pytest.mark.slow


def test_everything_goes_by_keys(scripted: Scripted, visit: Open) -> None:
    page = visit(scripted.address, permissions=["clipboard-read", "clipboard-write"]).open()
    expect(composer(page)).to_be_focused()
    page.keyboard.type("One line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("and another")
    expect(composer(page)).to_have_value("One line\nand another")
    page.keyboard.press("Enter")
    expect(words_of(answers(page).last)).to_have_text("Yes.")
    ended(answers(page).last)
    expect(composer(page)).to_be_focused()
    page.keyboard.press("ArrowUp")
    field = questions(page).last.get_by_role("textbox")
    expect(field).to_be_focused()
    expect(field).to_have_value("One line\nand another")
    page.keyboard.press("Escape")
    expect(field).to_have_count(0)
    scripted.text = "No."
    page.keyboard.press("Control+Shift+E")
    expect(words_of(answers(page).last)).to_have_text("No.")
    ended(answers(page).last)
    page.keyboard.press("Control+Shift+C")
    expect(page.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "No."
    scripted.text = "So:\n\n```python\nprint(1)\n```"
    page.keyboard.press("Control+Shift+E")
    ended(answers(page).last)
    answers(page).last.get_by_role("button", name="Copy the code").click()
    expect(answers(page).last.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "print(1)"
    page.keyboard.press("Control+k")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.press("Control+Shift+S")
    expect(page.get_by_role("searchbox")).to_have_count(0)
    page.keyboard.press("Control+k")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.press("Control+.")
    expect(page.get_by_role("dialog", name="Chat settings")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("Control+Shift+O")
    expect(page).to_have_url(scripted.address + "/")
    expect(composer(page)).to_be_focused()
    page.keyboard.type("?")  # is text where one writes
    expect(composer(page)).to_have_value("?")


def test_the_help_sheet_tells_of_the_keys(server: Running, visit: Open) -> None:
    page = visit(server.address).open()
    composer(page).blur()
    page.keyboard.press("?")
    sheet = page.get_by_role("dialog", name="Keyboard shortcuts")
    expect(sheet.locator("dd")).to_have_count(12)
    row = sheet.locator("div").filter(has=page.locator("dt", has_text="New chat"))
    expect(row.locator("kbd").first).to_have_text("Ctrl")
    page.keyboard.press("Escape")
    expect(sheet).to_have_count(0)
    page.keyboard.press("/")
    expect(composer(page)).to_be_focused()


def test_tab_reaches_what_a_page_has_and_shows_where_it_is(server: Running, visit: Open) -> None:
    page = visit(server.address).open("/account/usage")
    expect(page.get_by_role("img", name=re.compile("^Tokens per day"))).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        if focused.count() == 0:
            break
        seen.append(focused.evaluate("(node) => node.ariaLabel || node.textContent.trim()"))
        outline = focused.evaluate("(node) => getComputedStyle(node).outlineStyle")
        assert outline != "none", seen[-1]
    assert {"Days", "What is shown", "Grouped by", "CSV", "Requests"} <= set(seen)


def test_chinese_and_english(server: Running, visit: Open) -> None:
    here = visit(server.address, locale="zh-CN")
    page = here.open()
    expect(page.get_by_role("link", name="新对话")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("lang", re.compile("^zh"))
    page.get_by_role("button", name=re.compile("访客")).click()
    page.get_by_role("menuitemradio", name="English").click()
    expect(page.get_by_role("link", name="New chat")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    page.reload()
    expect(page.get_by_role("link", name="New chat")).to_be_visible()
    for path in ("/fill", "/account", "/account/keys", "/account/balance", "/account/usage"):
        here.go(page, path)
        assert not re.search(
            r"[\u4e00-\u9fff]", page.locator("#main h1, #main h2").first.inner_text()
        )
    choose(page, "Guest on this machine", "中文")
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(r"^[\u4e00-\u9fff]+"))


def test_errors_are_told_in_chinese(server: Running, visit: Open) -> None:
    here = visit(server.address, locale="zh-CN")
    here.expect("status of 4(01|09)")
    page = here.open("/log-in")
    taken = {"email": "taken@example.org", "password": "correct horse battery"}
    httpx.post(f"{server.address}/api/account/sign-up", json=taken, headers={
        "Origin": server.address
    }).raise_for_status()  # fmt: skip
    for action, words in (("登录", "邮箱地址或密码错误。"), ("注册", "该邮箱地址已注册账户。")):
        page.get_by_label("邮箱地址").fill(taken["email"])
        page.get_by_label("密码").fill("another password")
        page.get_by_role("button", name=action).click()
        expect(page.get_by_role("alert")).to_have_text(words)
        page.get_by_role("link", name="注册").or_(page.get_by_role("link", name="登录")).click()


def test_chinese_text_is_set_in_a_font_of_its_own(scripted: Scripted, visit: Open) -> None:
    scripted.text = "## 标题\n\n**加粗**的文字，和`代码`。"
    page = visit(scripted.address).open()
    answer = ask(page, "请解释一下多头潜在注意力机制")
    expect(answer.get_by_role("heading", name="标题")).to_be_visible()
    expect(answer.locator("strong")).to_have_text("加粗")
    expect(page).to_have_title(re.compile("请解释一下多头潜在注意力机制"))
    for where in (answer.locator("p"), answer.locator("code"), composer(page)):
        fonts = where.first.evaluate("(node) => getComputedStyle(node).fontFamily")
        assert re.search("PingFang SC.*Microsoft YaHei.*Noto Sans (Mono )?CJK SC", fonts), fonts


def colour(where: Locator) -> str:
    return str(where.evaluate("(node) => getComputedStyle(node).backgroundColor"))


def test_themes(server: Running, visit: Open) -> None:
    here = visit(server.address, color_scheme="dark")
    page = here.open()
    body = page.locator("body")
    dark = colour(body)
    choose(page, "Theme", "Light")
    expect(body).not_to_have_css("background-color", dark)
    light = colour(body)
    page.reload()
    expect(body).to_have_css("background-color", light)
    choose(page, "Theme", "Dark")
    expect(body).to_have_css("background-color", dark)
    choose(page, "Theme", "As the system")
    expect(body).to_have_css("background-color", dark)
    page.emulate_media(color_scheme="light")
    expect(body).to_have_css("background-color", light)


def test_a_phone(server: Running, visit: Open) -> None:
    here = visit(
        server.address, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True
    )
    page = here.open()
    expect(page.get_by_role("searchbox")).to_have_count(0)
    configure(page, Temperature="0")
    ask(page, "Write a Python function that checks if a number is prime.")
    fits(page)
    page.get_by_role("button", name="Open the sidebar").tap()
    expect(page.get_by_role("searchbox")).to_be_visible()
    fits(page)
    page.get_by_role("link", name="Code completion").tap()
    expect(page.get_by_role("heading", level=1)).to_have_text("Code completion")
    expect(page.get_by_role("searchbox")).to_have_count(0)  # the drawer has closed
    for path in ("/fill", "/account", "/account/keys", "/account/balance", "/account/usage"):
        here.go(page, path)
        fits(page)
    # A row is a card there, and each cell says what it is.
    row = page.get_by_role("region", name="Requests").locator("tbody tr").first
    row.scroll_into_view_if_needed()
    for place, column in enumerate(("Time", "Model", "Key", "Input tokens")):
        expect(row.locator("td").nth(place)).to_have_attribute("data-label", column)
        expect(row.locator("td").nth(place)).to_be_in_viewport()


def fits(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 360, page.url


def test_the_policy_and_what_may_be_cached(server: Running) -> None:
    page = httpx.get(server.address + "/c/anything", headers={"Accept": "text/html"})
    policy = dict(
        part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["object-src"] == policy["base-uri"] == "'none'"
    assert not re.search(r"unsafe|\*|https?:", page.headers["content-security-policy"])
    assert page.headers["cache-control"] == "no-store"
    assert not re.search(r"<script(?![^>]*src=)|style=|\son\w+=|https?://", page.text)
    script = re.search(r'src="(/assets/[^"]+)"', page.text)
    assert script
    cached = httpx.get(server.address + script[1]).headers["cache-control"]
    assert "immutable" in cached and "max-age=31536000" in cached
