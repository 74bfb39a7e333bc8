"""What goes wrong is said, and there is a way on."""

from __future__ import annotations

import pytest
from playwright.sync_api import Route, expect

from dsv2.engine.request import OverloadedError
from dsv2.service.serving import EngineGoneError
from tests.service.running import Running
from tests.site.conftest import Open
from tests.site.judging import problems_of
from tests.site.scripted import FAR, Scripted
from tests.site.visiting import answers, ask, begin, composer, configure, ended, questions, words_of

pytestmark = pytest.mark.slow


def test_a_chat_that_no_longer_fits(server: Running, visit: Open) -> None:
    here = visit(server.address)
    here.expect("status of 400")
    page = here.open()
    composer(page).fill("word " * 3000)
    expect(page.get_by_text("This may not fit into the model’s context")).to_be_visible()
    composer(page).press("Enter")
    notice = page.get_by_role("alert").filter(has_text="no longer fits into the model’s context")
    expect(notice).to_be_visible()
    expect(notice.locator("[lang=en]")).to_contain_text("2048")  # what the server says of it
    notice.get_by_role("link", name="New chat").click()
    expect(page).to_have_url(server.address + "/")
    expect(composer(page)).to_be_empty()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OverloadedError("the line is full"), "The server is busy."),
        (EngineGoneError("it is gone"), "The model’s process stopped and is being restarted."),
    ],
)
def test_an_engine_that_cannot(
    scripted: Scripted, visit: Open, error: Exception, words: str
) -> None:
    scripted.error, scripted.allowed = error, 0
    here = visit(scripted.address)
    here.expect("status of 503")
    page = here.open()
    answer = ended(begin(page, "Can you?"))
    expect(answer).to_contain_text(words)
    assert problems_of(page) == []
    scripted.allowed = FAR
    answer.get_by_role("button", name="Try again").click()
    expect(words_of(answer)).to_have_text("Yes.")
    expect(answer.get_by_text(words)).to_have_count(0)
    scripted.error, scripted.allowed, scripted.text = error, 2, "It breaks off here."
    answer = ended(begin(page, "And now?"))
    expect(words_of(answer)).to_have_text("It bre")  # what came is kept
    expect(answer).to_contain_text(words)
    scripted.allowed = FAR
    answer.get_by_role("button", name="Try again").click()
    expect(words_of(answer)).to_have_text("It breIt breaks off here.")  # and continued


def test_a_connection_that_is_lost_and_comes_back(server: Running, visit: Open) -> None:
    here = visit(server.address)
    here.expect("ERR_INTERNET_DISCONNECTED")
    page = here.open()
    configure(page, Temperature="0")
    ask(page, "What is 11 + 11?")
    here.context.set_offline(True)
    composer(page).fill("What is 17 + 25?")
    composer(page).press("Enter")
    notice = page.get_by_role("alert").filter(has_text="The server cannot be reached.")
    expect(notice).to_be_visible()
    expect(composer(page)).to_have_value("What is 17 + 25?")  # nothing is lost
    notice.get_by_role("button", name="Try again").click()
    expect(notice).to_be_visible()
    here.context.set_offline(False)
    notice.get_by_role("button", name="Try again").click()
    expect(questions(page)).to_have_count(2)
    expect(answers(page).last).to_contain_text("42")
    expect(notice).to_have_count(0)
    expect(composer(page)).to_be_empty()


def test_a_first_message_that_does_not_get_out(server: Running, visit: Open) -> None:
    here = visit(server.address)
    here.expect("ERR_INTERNET_DISCONNECTED")
    page = here.open()
    configure(page, Temperature="0")
    here.context.set_offline(True)
    composer(page).fill("What is 17 + 25?")
    composer(page).press("Enter")
    notice = page.get_by_role("alert").filter(has_text="The server cannot be reached.")
    expect(notice).to_be_visible()
    expect(composer(page)).to_have_value("What is 17 + 25?")
    assert problems_of(page) == []
    here.context.set_offline(False)
    notice.get_by_role("button", name="Try again").click()
    expect(answers(page)).to_contain_text("42")
    expect(questions(page)).to_have_count(1)
    expect(notice).to_have_count(0)
    expect(composer(page)).to_be_empty()


def test_a_message_whose_answer_is_lost_is_not_said_twice(server: Running, visit: Open) -> None:
    here = visit(server.address)
    here.expect("ERR_FAILED")
    page = here.open()
    configure(page, Temperature="0")
    ask(page, "What is 11 + 11?")

    def lose(route: Route) -> None:
        route.fetch()  # the server has it
        route.abort()

    page.route("**/messages", lose, times=1)
    composer(page).fill("What is 17 + 25?")
    composer(page).press("Enter")
    notice = page.get_by_role("alert").filter(has_text="The server cannot be reached.")
    notice.get_by_role("button", name="Try again").click()
    expect(answers(page).last).to_contain_text("42")
    expect(questions(page)).to_have_count(2)
    expect(notice).to_have_count(0)
    expect(composer(page)).to_be_empty()
    page.reload()
    expect(questions(page)).to_have_count(2)
    expect(page.get_by_role("group", name="Versions")).to_have_count(0)


def test_a_page_that_cannot_begin(server: Running, visit: Open) -> None:
    here = visit(server.address)
    here.expect("ERR_FAILED|ERR_INTERNET_DISCONNECTED")
    here.context.route("**/api/site", lambda route: route.abort())
    page = here.open()
    expect(page.get_by_role("heading", name="This could not be loaded")).to_be_visible()
    here.context.unroute("**/api/site")
    page.get_by_role("button", name="Try again").click()
    expect(composer(page)).to_be_visible()


def test_addresses_of_nothing(server: Running, visit: Open) -> None:
    here = visit(server.address)
    here.expect("status of 404")
    page = here.open("/no/such/page")
    expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()
    here.go(page, "/c/conversation_of_nobody")
    expect(page.get_by_role("heading", name="There is no such chat")).to_be_visible()
    page.get_by_role("link", name="New chat").last.click()
    expect(composer(page)).to_be_enabled()
