"""Answers go on whatever becomes of pages, networks and servers."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.service.running import Running, running, until
from tests.site.conftest import Open
from tests.site.visiting import (
    ENDLESS,
    WISH,
    answers,
    ask,
    begin,
    configure,
    ended,
    has_words,
    words_of,
)

pytestmark = pytest.mark.slow


@contextmanager
def standing_still(server: Running) -> Iterator[None]:
    """The model says nothing meanwhile."""
    engine = server.engine_pid
    os.kill(engine, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(engine, signal.SIGCONT)


def begun(page: Page) -> str:
    """Begin a long answer; what there is of it."""
    configure(page, **ENDLESS)
    return has_words(begin(page, WISH), 20)


def saved(data: Path) -> str:
    """What of the one answer is written down."""
    with closing(sqlite3.connect(data / "platform.sqlite")) as db:
        [(content,)] = db.execute("SELECT content FROM messages WHERE role = 'assistant'")
    return str(content)


def stop(page: Page) -> None:
    page.get_by_role("button", name="Stop the answer").click()
    ended(answers(page).last)


def test_a_page_that_is_reloaded_goes_on_reading(server: Running, visit: Open) -> None:
    page = visit(server.address).open()
    known = begun(page)
    with standing_still(server):
        page.reload()
        answer = answers(page).last
        expect(answer).to_have_attribute("aria-busy", "true")
        assert has_words(answer, len(known) - 1).startswith(known[:15])
        before = words_of(answer).text_content() or ""
    has_words(answer, len(before) + 20)
    assert (words_of(answer).text_content() or "").startswith(before[:-10])
    stop(page)


def test_two_tabs_show_one_answer_and_each_may_stop_it(server: Running, visit: Open) -> None:
    here = visit(server.address)
    one = here.open()
    known = begun(one)
    two = here.open(re.sub("^.*?//[^/]*", "", one.url))
    has_words(answers(two).last, len(known) + 20)
    one.bring_to_front()
    has_words(answers(one).last, len(known) + 20)
    stop(two)
    ended(answers(one).last)
    expect(words_of(answers(one).last)).to_have_text(
        words_of(answers(two).last).text_content() or ""
    )


def test_a_slow_network_brings_the_whole_answer(server: Running, visit: Open) -> None:
    page = visit(server.address).open()
    configure(page, Temperature="0")
    slow = {"offline": False, "latency": 300, "downloadThroughput": 4096, "uploadThroughput": 4096}
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", slow)
    answer = ask(page, "What is DeepSeek-V2-Lite?")
    expect(words_of(answer)).to_have_text(
        "DeepSeek-V2-Lite is the smaller model of the family: 15.7B parameters, 2.4B active per "
        "token, 27 layers and no query compression."
    )


def test_an_answer_outlives_its_page(server: Running, visit: Open) -> None:
    here = visit(server.address)
    page = here.open()
    with standing_still(server):
        configure(page, **ENDLESS | {"Most_tokens": "60"})
        begin(page, f"{WISH} of pages")
        address = page.url
        page.close()
    page = here.open()
    page.get_by_role("link", name=f"{WISH} of pages").click()
    expect(page).to_have_url(address)
    answer = ended(answers(page).last)
    has_words(answer, 60)
    expect(answer).to_contain_text("The answer reached its longest length")


def test_a_server_that_is_killed_keeps_what_was_said(
    built: Path, visit: Open, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    with running(data) as server:
        port = server.address.rpartition(":")[2]
        here = visit(server.address)
        here.expect("net::ERR_")
        page = here.open()
        begun(page)
        answer = answers(page).last
        engine = server.engine_pid
        os.kill(engine, signal.SIGSTOP)  # or it might have ended before the server does
        code = answer.locator("pre code")
        until(lambda: saved(data).endswith(code.text_content() or "nothing"), 10)
        known = words_of(answer).text_content() or ""
        server.process.kill()
        server.process.wait()
        os.kill(engine, signal.SIGCONT)
        expect(answer).to_contain_text("reconnecting")
        assert words_of(answer).text_content() == known
    with running(data, "--port", port):
        page.evaluate("dispatchEvent(new Event('online'))")  # or it would try again in seconds
        notice = answer.get_by_text("The server was restarted before the answer was complete.")
        expect(notice).to_be_visible()
        ended(answer)
        expect(words_of(answer)).to_have_text(known)
        answer.get_by_role("button", name="Try again").click()
        has_words(answer, len(known) + 20)
        assert (words_of(answer).text_content() or "").startswith(known[:-10])
        stop(page)
        expect(notice).to_have_count(0)
