"""The platform with accounts on: members, their keys and money, and the administrators' pages."""

from __future__ import annotations

import csv
import io
import re

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.service.running import Running
from tests.site.conftest import Open
from tests.site.judging import problems_of
from tests.site.visiting import ask, choose, composer, configure, download
from tests.site.world import ADMIN, PASSWORD

pytestmark = pytest.mark.slow


ANOTHER = "staple battery horse"


def enter(page: Page, email: str, action: str = "Log in", password: str = PASSWORD) -> None:
    page.get_by_label("E-mail address").fill(email)
    page.get_by_label("Password", exact=True).fill(password)
    page.get_by_role("button", name=action, exact=True).click()
    expect(page.get_by_role("button", name=email)).to_be_visible()


def test_an_account_from_the_door_to_the_last_key(platform: Running, visit: Open) -> None:
    here = visit(platform.address)
    here.expect("status of (401|402)")
    page = here.open("/account/keys")
    expect(page).to_have_url(re.compile(r"/log-in\?to=%2Faccount%2Fkeys$"))
    page.get_by_label("E-mail address").fill("ada@example.org")
    page.get_by_label("Password", exact=True).fill("wrong one")
    page.get_by_role("button", name="Log in", exact=True).click()
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_role("link", name="Sign up").click()
    enter(page, "ada@example.org", "Sign up")
    cookies_are_strict(page)
    an_empty_balance_is_said_and_filled(here.open("/"), platform, visit)
    page.bring_to_front()
    here.go(page, "/account/keys")
    keys_are_made_limited_and_revoked(page, platform)
    here.go(page, "/account/usage")
    usage_is_drawn_and_downloaded(page)
    here.go(page, "/account")
    a_password_is_changed(page)
    enter(page, "ada@example.org", password=ANOTHER)
    choose(page, "ada@example.org", "Log out")
    expect(page).to_have_url(re.compile("/log-in"))
    here.go(page, "/account/balance")
    expect(page).to_have_url(re.compile("/log-in"))
    enter(page, "ada@example.org", password=ANOTHER)
    expect(page.get_by_role("heading", name="Balance")).to_be_visible()


def cookies_are_strict(page: Page) -> None:
    [cookie] = page.context.cookies()
    assert cookie["httpOnly"] and cookie["sameSite"] == "Lax" and cookie["path"] == "/"
    assert page.evaluate("document.cookie") == ""
    assert page.evaluate("JSON.stringify(localStorage)").find(cookie["value"]) == -1


def an_empty_balance_is_said_and_filled(page: Page, platform: Running, visit: Open) -> None:
    configure(page, Temperature="0")
    composer(page).fill("What is 17 + 25?")
    composer(page).press("Enter")
    notice = page.get_by_role("alert").filter(has_text="Your balance is used up.")
    expect(notice).to_be_visible()
    code = a_code_is_made(visit, platform)
    notice.get_by_role("link", name="To the balance").click()
    expect(page.get_by_text("$0.00").first).to_be_visible()
    page.get_by_label("Redemption code").fill(code)
    page.get_by_role("button", name="Redeem").click()
    expect(page.get_by_text("$2.50 added to your balance")).to_be_visible()
    movements = page.get_by_role("region", name="Movements").get_by_role("row")
    expect(movements.filter(has_text="Grant")).to_contain_text("+$2.50")
    page.get_by_role("link", name="Back to the chat").click()
    configure(page, Temperature="0")
    expect(ask(page, "What is 17 + 25?")).to_contain_text("42")
    page.goto("/account/balance")
    charged = movements.filter(has_text="Usage")
    expect(charged).to_contain_text("-$0.0000")
    expect(page.get_by_role("region", name="Prices").get_by_role("row").last).to_contain_text(
        "$0.14"
    )


def a_code_is_made(visit: Open, platform: Running) -> str:
    """By the administrator, in a browser of their own."""
    page = visit(platform.address).open("/log-in?to=/admin/codes")
    enter(page, ADMIN)
    page.get_by_role("button", name="Create a code").click()
    form = page.get_by_role("dialog")
    form.get_by_label("Amount in USD").fill("2.50")
    form.get_by_role("button", name="Create a code").click()
    shown = page.get_by_role("dialog", name="The new code")
    code = shown.locator("code").first.inner_text()
    shown.get_by_role("button", name="I have kept it").click()
    row = page.get_by_role("region", name="Redemption codes").get_by_role("row").last
    expect(row).to_contain_text("0 / 1")
    page.context.close()
    return code


def keys_are_made_limited_and_revoked(page: Page, platform: Running) -> None:
    page.get_by_role("button", name="Create a key").click()
    form = page.get_by_role("dialog", name="Create a key")
    form.get_by_label("Name").fill("notebook")
    form.get_by_label("Requests per minute").fill("many")
    form.get_by_role("button", name="Create a key").click()
    expect(form.get_by_role("alert")).to_contain_text("Limits are positive numbers")
    form.get_by_label("Requests per minute").fill("1")
    form.get_by_label("Budget in USD").fill("0.50")
    form.get_by_label("Budget for").select_option("each day")
    form.get_by_label("pocket").check()
    form.get_by_role("button", name="Create a key").click()
    shown = page.get_by_role("dialog", name="Your new key")
    secret = shown.locator("code").first.inner_text()
    expect(shown).to_contain_text("never again")
    shown.get_by_role("button", name="I have kept it").click()
    row = page.get_by_role("row").filter(has_text="notebook")
    for words in ("$0.50 each day", "1 requests/min", "pocket", secret[:6]):
        expect(row).to_contain_text(words)
    assert secret not in page.content()
    assert [asked(platform, secret) for _ in range(2)] == [200, 429]
    row.get_by_role("button", name="Change notebook").click()
    form = page.get_by_role("dialog", name="Change the key")
    form.get_by_label("Requests per minute").fill("")
    form.get_by_role("button", name="Save").click()
    expect(row).not_to_contain_text("requests/min")
    assert asked(platform, secret) == 200
    row.get_by_role("button", name="Revoke notebook").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(row).to_contain_text("revoked")
    # The button that had focus is gone: Tab goes on from the page's content, not from its top.
    expect(page.locator("#main")).to_be_focused()
    assert asked(platform, secret) == 401


def asked(platform: Running, secret: str) -> int:
    body = {"model": "pocket", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    headers = {"Authorization": f"Bearer {secret}"}
    url = platform.address + "/v1/chat/completions"
    return httpx.post(url, json=body, headers=headers, timeout=60).status_code


def a_password_is_changed(page: Page) -> None:
    """And every session ended, with this one."""
    page.get_by_label("Password now").fill("wrong one")
    page.get_by_label("New password").fill(ANOTHER)
    change = page.get_by_role("button", name="Change the password")
    change.click()
    expect(page.get_by_text("The address or the password is wrong.")).to_be_visible()
    page.get_by_label("Password now").fill(PASSWORD)
    change.click()
    expect(page.get_by_text("Password changed; other sessions have ended")).to_be_visible()
    page.get_by_role("button", name="Log out everywhere").click()
    page.get_by_role("dialog").get_by_role("button", name="Log out").click()
    expect(page).to_have_url(re.compile("/log-in$"))


def usage_is_drawn_and_downloaded(page: Page) -> None:
    rows = page.get_by_role("region", name="Requests").get_by_role("row")
    expect(rows).to_have_count(1 + 3)
    chart = page.get_by_role("img", name="Tokens per day over 30 days")
    expect(chart.locator("rect").first).to_be_visible()
    page.get_by_label("Grouped by").select_option("by key")
    expect(page.locator("figcaption")).to_contain_text("notebook")
    expect(page.locator("figcaption")).to_contain_text("this site")
    page.get_by_label("What is shown").select_option("Requests")
    expect(page.get_by_role("img", name="Requests per day over 30 days")).to_be_visible()
    page.get_by_label("Days", exact=True).select_option("Last 7 days")
    expect(page.get_by_role("img", name="Requests per day over 7 days")).to_be_visible()
    name, content = download(page, page.get_by_role("link", name="CSV").first)
    table = list(csv.DictReader(io.StringIO(content.decode())))
    assert name.endswith(".csv") and sum(int(row["requests"]) for row in table) == 3


def test_an_administrator_sees_to_everything(platform: Running, visit: Open) -> None:
    here = visit(platform.address)
    here.expect("status of 402")  # a withdrawal of more than there is
    page = here.open("/log-in?to=/admin")
    enter(page, ADMIN)
    engines_are_watched(page, here.open("/"))
    page.get_by_role("link", name="Users").click()
    a_user_is_added_and_given_money(page)
    page.get_by_role("link", name="Prices").click()
    page.get_by_role("button", name="Price of pocket").click()
    form = page.get_by_role("dialog")
    form.get_by_label("Output").fill("0.75")
    form.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Price saved")).to_be_visible()
    expect(page.get_by_role("row").last).to_contain_text("$0.75")
    page.get_by_role("link", name="Settings").click()
    setting = page.get_by_label("Requests of an account per minute")
    setting.fill("600")
    setting.blur()
    expect(page.get_by_text("Setting saved")).to_be_visible()
    page.get_by_role("link", name="Usage of all").click()
    expect(page.get_by_role("img", name=re.compile("^Tokens per day"))).to_be_visible()
    page.get_by_label("Grouped by").select_option("by account")
    expect(page.locator("figcaption")).to_contain_text(ADMIN)
    page.get_by_role("link", name="Audit log").click()
    for words in ("600", "suspended", "pocket"):
        expect(page.get_by_role("row").filter(has_text=words).first).to_be_visible()
    suspended = page.get_by_role("row").filter(has_text="user.status").first
    expect(suspended.get_by_role("cell").nth(2)).to_contain_text(re.compile(f"^{ADMIN}.*user_"))
    expect(suspended.get_by_role("cell").nth(3)).to_contain_text("grace@example.org")
    taken = page.get_by_role("row").filter(has_text="account.top_up").first
    expect(taken.get_by_role("cell").nth(3)).to_contain_text("grace@example.org")
    page.reload()
    page.get_by_role("link", name="Settings").click()
    expect(setting).to_have_value("600")


def engines_are_watched(page: Page, chat: Page) -> None:
    """The charts move while somebody chats."""
    card = page.get_by_role("region", name="pocket")
    expect(card).to_contain_text("healthy")
    before = (
        card.get_by_text("Generated tokens").locator("xpath=following-sibling::dd").inner_text()
    )
    configure(chat, Temperature="0")
    ask(chat, "What is DeepSeek-V2?")
    page.bring_to_front()
    generated = card.get_by_text("Generated tokens").locator("xpath=following-sibling::dd")
    expect(generated).not_to_have_text(before)
    line = card.get_by_role("img", name=re.compile("Tokens per second")).locator("polyline")
    expect(line).to_have_attribute("points", re.compile(r"\S+ \S+"))
    page.get_by_role("button", name="Check the books").click()
    expect(page.get_by_text("The books agree")).to_be_visible()


def a_user_is_added_and_given_money(page: Page) -> None:
    page.get_by_role("button", name="Add a user").click()
    form = page.get_by_role("dialog")
    form.get_by_label("E-mail address").fill("grace@example.org")
    form.get_by_label("Password").fill(PASSWORD)
    form.get_by_role("button", name="Add a user").click()
    expect(form).to_be_hidden()
    page.get_by_label("Search by e-mail address").fill("grace")
    rows = page.get_by_role("region", name="Users").get_by_role("row")
    expect(rows).to_have_count(2)
    rows.get_by_role("link", name="grace@example.org").click()
    page.get_by_label("Amount in USD").fill("12.50")
    page.get_by_label("Note").fill("invoice 7")
    page.get_by_role("button", name="Put in").click()
    row = page.get_by_role("row").filter(has_text="invoice 7")
    expect(row).to_contain_text("+$12.50")
    page.get_by_label("Amount in USD").fill("12.51")
    page.get_by_role("button", name="Take out").click()
    expect(page.get_by_text("No more than $12.50 can be taken out of “Paid in”")).to_be_visible()
    assert problems_of(page) == []
    for action, role in (
        ("Make an administrator", "Administrator"),
        ("Make an ordinary user", "User"),
    ):
        page.get_by_role("button", name=action).click()
        page.get_by_role("dialog").get_by_role("button", name=action).click()
        expect(page.locator(".badge").first).to_have_text(role)
    page.get_by_role("button", name="Suspend").click()
    page.get_by_role("dialog").get_by_role("button", name="Suspend").click()
    expect(page.get_by_text("suspended", exact=True)).to_be_visible()


def test_a_member_sees_no_page_of_administrators(platform: Running, visit: Open) -> None:
    here = visit(platform.address)
    here.expect("status of (401|403|404)")
    page = here.open("/sign-up")
    enter(page, "eve@example.org", "Sign up")
    page.get_by_role("button", name="eve@example.org").click()
    expect(page.get_by_role("menuitem", name="Account")).to_be_visible()
    expect(page.get_by_role("menuitem", name="Administration")).to_have_count(0)
    for path in ("/admin", "/admin/users", "/admin/settings"):
        page.goto(path)
        expect(page.get_by_role("link", name="Audit log")).to_have_count(0)
        expect(page.get_by_text(ADMIN)).to_have_count(0)
