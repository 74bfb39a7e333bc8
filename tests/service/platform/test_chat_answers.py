"""Answers of the chat site: F44, and that no page's coming and going matters to them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.engine.request import OverloadedError
from dsv2.service.chats.runs import Runs, answering
from dsv2.service.chats.shapes import message_shape
from dsv2.service.inference.sse import Patience
from dsv2.service.platform.admission import StoreAdmission
from dsv2.service.platform.office import Office
from dsv2.service.serving import EngineGoneError, Rates
from dsv2.service.store import Store
from dsv2.service.store.errors import UnavailableError
from dsv2.service.store.models import messages
from tests.service.asgi import Reply
from tests.service.platform.admitting import balance, check_books
from tests.service.platform.site import add_person
from tests.service.platform.talking import TEXT, Talk, said


@pytest.fixture
def talk(office: Office) -> Iterator[Talk]:
    made = Talk(office)
    yield made
    made.close()


def test_an_answer_is_computed_paid_for_and_kept(talk: Talk, store: Store) -> None:
    conversation, answer = talk.begin("Why is the sky blue?", system="Be brief.")
    reply = talk.events(answer)
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-store"
    assert said(reply) == TEXT
    [(name, done)] = reply.named[-1:]
    assert name == "done"
    assert (done["status"], done["finish"], done["model"]) == ("complete", "stop", "tiny")
    usage = done["usage"]
    tokens = len(talk.tokenizer.encode(TEXT))
    assert usage["completion_tokens"] == tokens and usage["seconds"] >= 0
    prompt = talk.engine.requests[0].prompt_ids
    assert usage["prompt_tokens"] == len(prompt)
    assert talk.prompt().count("Be brief.") == 1 and "Why is the sky blue?" in talk.prompt()
    found = talk.whole(conversation)
    assert found["title"] == "Why is the sky blue?" and found["leaf_id"] == answer
    assert found["messages"][1] == done
    cached = usage["cached_tokens"]
    spent = balance(store, talk.person).spent
    assert spent == (len(prompt) - cached) * 10 + cached + tokens * 20
    check_books(store, talk.person)
    [row] = talk.browser.get("/api/account/requests").json()["requests"]
    assert (row["finish"], row["completion_tokens"]) == ("stop", tokens)


def test_a_request_of_the_chat_is_the_accounts_own(talk: Talk) -> None:
    talk.ended(talk.begin()[1])
    [request] = talk.engine.requests
    assert request.tenant == request.salt == talk.person.account_id


def test_pages_read_along_from_wherever_they_are(talk: Talk) -> None:
    """Two pages, one that comes late, one that is reloaded, one that leaves."""
    talk.allowed = 3
    conversation, answer = talk.begin()
    head = talk.tokenizer.decode(talk.tokenizer.encode(TEXT)[:3])
    talk.until_saved(conversation, answer, head)
    assert talk.message(conversation, answer)["status"] == "running"

    async def work() -> tuple[Reply, Reply, Reply]:
        seen = asyncio.Event()

        async def leave(reply: Reply) -> bool:
            if b"delta" in reply.body:
                seen.set()
            return seen.is_set()

        first = asyncio.create_task(talk.reading(answer))
        left = asyncio.create_task(talk.reading(answer, leave=leave))
        await left
        reloaded = asyncio.create_task(talk.reading(answer, len(head)))
        await asyncio.sleep(0.01)
        talk.allowed = 10**9
        return await first, left.result(), await reloaded

    first, left, reloaded = talk.run(work())
    assert said(first) == TEXT
    assert said(left) == head and not left.is_whole
    assert said(reloaded, len(head)) == TEXT[len(head) :]
    assert first.named[-1] == reloaded.named[-1]
    assert len(talk.engine.requests) == 1 and talk.engine.cancelled == []


def test_an_answer_goes_on_without_a_page(talk: Talk) -> None:
    conversation, answer = talk.begin()
    talk.until(lambda: not talk.runs.open)
    assert talk.message(conversation, answer)["content"] == TEXT


@pytest.mark.parametrize("start", [0, 5, 16, 17, 18, 1000])
def test_what_has_ended_is_read_from_any_place(talk: Talk, start: int) -> None:
    """Places are code points: the face at 16 is one."""
    _, answer = talk.begin()
    talk.ended(answer)
    reply = talk.events(answer, start)
    wanted = TEXT[start:]
    assert said(reply, start) == wanted
    assert [name for name, _ in reply.named] == (["delta"] if wanted else []) + ["done"]
    assert talk.browser.get(f"/api/chat/messages/{answer}/events?from=-1").status_code == 400


def test_whoever_waits_gets_a_sign_of_life(talk: Talk) -> None:
    object.__setattr__(talk.runs.inference, "patience", Patience(keep_alive=0.01))
    talk.allowed = 0
    _, answer = talk.begin()

    async def leave(reply: Reply) -> bool:
        return b": keep-alive\n\n: keep-alive\n\n" in reply.body

    reply = talk.events(answer, leave=leave)
    assert reply.named == []


def test_the_pages_that_read_are_counted(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv2.service.chats.runs.MAX_READERS", 1)
    talk.allowed = 0
    _, answer = talk.begin()

    async def work() -> tuple[Reply, Reply]:
        first = asyncio.create_task(talk.reading(answer))
        await asyncio.sleep(0.05)
        second = await talk.reading(answer)
        talk.allowed = 10**9
        return await first, second

    first, second = talk.run(work())
    assert (first.status, second.status) == (200, 429) and said(first) == TEXT
    assert talk.events(answer).status == 200


def test_stopping_keeps_and_charges_what_there_is(talk: Talk, store: Store) -> None:
    """F44."""
    talk.allowed = 4
    conversation, answer = talk.begin()
    head = talk.tokenizer.decode(talk.tokenizer.encode(TEXT)[:4])
    talk.until_saved(conversation, answer, head)
    stopped = talk.act(answer, "stop")
    assert (stopped["status"], stopped["content"], stopped["failure"]) == ("stopped", head, None)
    assert stopped["usage"]["completion_tokens"] == 4
    assert talk.message(conversation, answer) == stopped
    talk.until(lambda: talk.engine.open == 0)
    assert len(talk.engine.cancelled) == 1
    assert talk.act(answer, "stop") == stopped
    check_books(store, talk.person)
    [row] = talk.browser.get("/api/account/requests").json()["requests"]
    assert (row["finish"], row["completion_tokens"]) == ("cancelled", 4)
    assert row["charge"] == row["cost"] > 0


def test_an_answer_goes_on_where_it_ended(talk: Talk) -> None:
    talk.allowed = 4
    conversation, answer = talk.begin()
    head = talk.tokenizer.decode(talk.tokenizer.encode(TEXT)[:4])
    talk.until_saved(conversation, answer, head)
    before = talk.act(answer, "stop")
    talk.allowed, talk.text = 10**9, " And so on."
    again = talk.act(answer, "continue")
    assert (again["id"], again["status"], again["content"]) == (answer, "running", head)
    reply = talk.events(answer, len(head))
    assert said(reply, len(head)) == " And so on."
    done = reply.named[-1][1]
    assert (done["content"], done["status"]) == (head + " And so on.", "complete")
    first, second = talk.prompt(0), talk.prompt(1)
    assert second == first + head
    tokens = before["usage"]["completion_tokens"] + len(talk.tokenizer.encode(" And so on."))
    assert done["usage"]["completion_tokens"] == tokens
    refused = talk.browser.post(f"/api/chat/messages/{answer}/continue")
    assert refused.status_code == 409
    assert talk.message(conversation, answer) == done


def test_what_has_reached_its_length_goes_on(talk: Talk) -> None:
    talk.finish = "length"
    _, answer = talk.begin(params={"max_tokens": 50})
    assert talk.ended(answer)["finish"] == "length"
    assert talk.engine.requests[0].params.max_tokens == 50
    talk.finish = "stop"
    talk.act(answer, "continue")
    assert talk.ended(answer)["content"] == TEXT * 2


def test_another_answer_is_a_sibling(talk: Talk) -> None:
    conversation, answer = talk.begin()
    talk.ended(answer)
    talk.text = "Otherwise."
    other = talk.act(answer, "regenerate")
    assert talk.ended(other["id"])["content"] == "Otherwise."
    found = talk.whole(conversation)
    assert [one["parent_id"] for one in found["messages"][1:]] == [found["messages"][0]["id"]] * 2
    assert found["leaf_id"] == other["id"] and talk.prompt(0) == talk.prompt(1)
    question = found["messages"][0]["id"]
    assert talk.browser.post(f"/api/chat/messages/{question}/regenerate").status_code == 409


def test_the_model_is_shown_the_branch_alone(talk: Talk) -> None:
    conversation, first = talk.begin("One")
    talk.ended(first)
    talk.ended(talk.say(conversation, "Two", first)["answer"]["id"])
    files = [{"name": "a.py", "text": "print(1)"}]
    edited = talk.say(conversation, "Zwei", first, attachments=files)
    talk.ended(edited["answer"]["id"])
    shown = talk.prompt()
    assert "One" in shown and TEXT in shown and "Zwei" in shown and "Two" not in shown
    assert "[file name]: a.py\n[file content begin]\nprint(1)\n[file content end]\nZwei" in shown
    assert edited["user"]["attachments"] == files


def test_an_answer_that_came_to_nothing_is_not_shown(talk: Talk) -> None:
    talk.allowed, talk.error = 0, EngineGoneError("gone")
    conversation, answer = talk.begin("One")
    assert talk.ended(answer)["content"] == ""
    talk.allowed = 10**9
    talk.ended(talk.say(conversation, "Two", answer)["answer"]["id"])
    assert "One" in talk.prompt() and "Two" in talk.prompt()
    assert talk.prompt().count("Assistant") == talk.prompt(0).count("Assistant")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineGoneError("/secret"), "engine_lost"),
        (OverloadedError("full"), "overloaded"),
        (ValueError("/secret"), "failed"),
    ],
)
def test_what_goes_wrong_is_said_and_the_text_stays(
    talk: Talk, store: Store, error: Exception, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    talk.allowed, talk.error = 2, error
    conversation, answer = talk.begin()
    reply = talk.events(answer)
    done = reply.named[-1][1]
    head = talk.tokenizer.decode(talk.tokenizer.encode(TEXT)[:2])
    assert (done["status"], done["content"], done["failure"]["code"]) == ("failed", head, code)
    assert "secret" not in done["failure"]["message"]
    assert talk.message(conversation, answer) == done
    check_books(store, talk.person)
    talk.allowed = 10**9
    talk.act(answer, "continue")
    assert talk.ended(answer)["failure"] is None


def test_without_money_the_question_is_kept(office: Office, store: Store) -> None:
    talk = Talk(office, add_person(store, paid=5))
    conversation, answer = talk.begin()
    done = talk.ended(answer)
    assert done["failure"]["code"] == "no_money" and "Insufficient" in done["failure"]["message"]
    assert done["usage"] is None and talk.engine.requests == []
    assert talk.whole(conversation)["messages"][0]["content"] == "Why?"
    talk.close()


def test_a_full_context_is_said(office: Office) -> None:
    talk = Talk(office, max_context=64)
    _, answer = talk.begin("word " * 100)
    failure = talk.ended(answer)["failure"]
    assert failure["code"] == "context_length" and "64 tokens" in failure["message"]
    talk.close()


def test_limits_of_the_account_hold(talk: Talk, office: Office) -> None:
    assert isinstance(office.admission, StoreAdmission)
    office.admission.account_rates = Rates(requests_per_minute=1)
    talk.ended(talk.begin()[1])
    assert talk.ended(talk.begin()[1])["failure"]["code"] == "rate_limited"


def test_who_waits_in_line_too_long_is_told(talk: Talk) -> None:
    object.__setattr__(talk.runs.inference, "patience", Patience(in_line=0.02))
    talk.allowed = 0
    assert talk.ended(talk.begin()[1])["failure"]["code"] == "overloaded"
    talk.until(lambda: talk.engine.open == 0)


def test_eight_answers_run_at_a_time(talk: Talk) -> None:
    talk.allowed = 1
    conversation, answer = talk.begin()
    for _ in range(7):
        talk.say(conversation)
    body = {"parent_id": None, "content": "x"}
    path = f"/api/chat/conversations/{conversation}/messages"
    refused = talk.browser.post(path, body)
    assert refused.status_code == 429 and refused.headers["retry-after"]
    assert refused.json()["error"]["code"] == "limit_reached"
    assert len(talk.whole(conversation)["messages"]) == 16
    talk.act(answer, "stop")
    assert talk.browser.post(path, body).status_code == 201


def test_deleting_a_conversation_ends_its_answers(talk: Talk, store: Store) -> None:
    talk.allowed = 2
    conversation, answer = talk.begin()
    talk.until(lambda: talk.engine.open == 1)
    assert talk.browser.delete(f"/api/chat/conversations/{conversation}").status_code == 204
    talk.until(lambda: talk.engine.open == 0 and not talk.runs.open)
    assert talk.browser.get(f"/api/chat/messages/{answer}/events").status_code == 404
    check_books(store, talk.person)


def test_tokens_are_kept_where_they_are_wanted(talk: Talk) -> None:
    talk.allowed = 0
    conversation, answer = talk.begin(params={"logprobs": True})

    async def work() -> Reply:
        reading = asyncio.create_task(talk.reading(answer))
        await asyncio.sleep(0.02)
        talk.allowed = 10**9
        return await reading

    reply: Reply = talk.run(work())
    told = [token for name, data in reply.named if name == "delta" for token in data["tokens"]]
    kept = talk.browser.get(f"/api/chat/messages/{answer}/tokens").json()["tokens"]
    assert kept == told and len(kept) == len(talk.tokenizer.encode(TEXT))
    assert kept[0]["text"] == "Because"[: len(kept[0]["text"])]
    assert kept[1]["logprob"] == -0.5 and kept[1]["top"][1] == [kept[0]["text"], -2.0]
    talk.browser.patch(f"/api/chat/conversations/{conversation}", {"params": {}})
    other = talk.act(answer, "regenerate")["id"]
    talk.ended(other)
    assert talk.browser.get(f"/api/chat/messages/{other}/tokens").status_code == 404


def test_tokens_of_an_answer_that_went_on_are_whole(talk: Talk) -> None:
    talk.finish = "length"
    _, answer = talk.begin(params={"logprobs": True})
    talk.ended(answer)
    talk.act(answer, "continue")
    talk.ended(answer)
    kept = talk.browser.get(f"/api/chat/messages/{answer}/tokens").json()["tokens"]
    assert len(kept) == 2 * len(talk.tokenizer.encode(TEXT))


def test_parameters_are_those_of_v1(talk: Talk) -> None:
    params: dict[str, Any] = {
        "model": "small", "temperature": 0.5, "top_p": 0.9, "top_k": -1, "min_p": 0.1,
        "max_tokens": 7, "repetition_penalty": 1.1, "presence_penalty": 0.2,
        "frequency_penalty": 0.3, "seed": 4, "stop": ["END"],
    }  # fmt: skip
    _, answer = talk.begin(params=params)
    assert talk.ended(answer)["model"] == "tiny"
    found = talk.engine.requests[0].params
    for name, value in (params | {"top_k": 0, "stop": ("END",)}).items():
        assert name == "model" or getattr(found, name) == value


def test_a_model_that_is_gone_is_said(talk: Talk, store: Store) -> None:
    _, answer = talk.begin()
    talk.ended(answer)
    kept = json.dumps({"model": "gone"})
    with store.write() as db:
        db.exec_driver_sql(f"UPDATE conversations SET params = '{kept}'")
    refused = talk.browser.post(f"/api/chat/messages/{answer}/regenerate")
    assert refused.status_code == 404 and refused.json()["error"]["param"] == "params.model"


def test_a_nul_is_no_text(talk: Talk) -> None:
    talk.text = "a\0b"
    _, answer = talk.begin()
    assert talk.ended(answer)["content"] == "a\ufffdb"


# The end of a server, and of others.


def test_a_server_that_dies_leaves_what_was_written_down(
    talk: Talk, office: Office, folder: Path
) -> None:
    talk.allowed = 3
    conversation, answer = talk.begin()
    head = talk.tokenizer.decode(talk.tokenizer.encode(TEXT)[:3])
    talk.until_saved(conversation, answer, head)
    later = Office(office.store, folder=folder, clock=lambda: office.clock() + 60_000)
    talk.run(Runs(later, talk.runs.inference).start())
    found = talk.message(conversation, answer)
    assert (found["status"], found["content"]) == ("failed", head)
    assert found["failure"]["code"] == "interrupted"
    # The process was not dead but slow: it learns that the answer is no longer its own.
    run = talk.runs.find(answer)
    talk.allowed = 4
    talk.until(lambda: not talk.runs.open)
    assert run is not None and message_shape(run.message) == found
    assert talk.message(conversation, answer) == found
    talk.allowed, talk.text = 10**9, "."
    talk.act(answer, "continue")
    assert talk.ended(answer)["content"] == head + "."
    later.close()


def test_a_server_that_stops_interrupts_what_does_not_end(talk: Talk, store: Store) -> None:
    talk.allowed = 3
    conversation, answer = talk.begin()
    talk.until(lambda: talk.engine.open)

    async def work() -> Reply:
        reading = asyncio.create_task(talk.reading(answer))
        assert not await talk.runs.wait(0.05)
        await talk.runs.interrupt()
        return await reading

    done = talk.run(work()).named[-1][1]
    head = talk.tokenizer.decode(talk.tokenizer.encode(TEXT)[:3])
    assert (done["status"], done["content"]) == ("failed", head)
    assert done["failure"]["code"] == "interrupted"
    assert talk.message(conversation, answer) == done
    assert talk.run(talk.runs.wait(0.0))
    check_books(store, talk.person)
    refused = talk.browser.post(f"/api/chat/messages/{answer}/continue")
    assert refused.status_code == 503


def test_a_server_that_stops_lets_answers_end(talk: Talk) -> None:
    conversation, answer = talk.begin()

    async def work() -> None:
        async with answering(talk.runs):
            assert await talk.runs.wait(5.0)

    talk.run(work())
    assert talk.message(conversation, answer)["status"] == "complete"


class Away:
    """A writer whose database is away now and then."""

    def __init__(self, writer: Any) -> None:
        self.writer, self.store, self.is_away = writer, writer.store, False

    async def write(self, work: Callable[[Connection], Any]) -> Any:
        if self.is_away:
            raise UnavailableError("the database is not available: /secret")
        return await self.writer.write(work)


def test_an_answers_end_waits_for_the_database(
    talk: Talk, office: Office, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away = Away(office.writer)
    object.__setattr__(talk.runs._around, "writer", away)
    talk.allowed = 3
    conversation, answer = talk.begin()
    talk.until(lambda: talk.engine.open)
    away.is_away = True
    talk.allowed = 10**9
    talk.until(lambda: "the end of answer" in caplog.text)
    assert talk.message(conversation, answer)["status"] == "running"
    away.is_away = False
    assert talk.ended(answer)["content"] == TEXT
    assert talk.message(conversation, answer)["status"] == "complete"


def test_answers_of_another_process_are_read_and_stopped(
    talk: Talk, office: Office, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsv2.service.chats.events.POLL_SECONDS", 0.01)
    talk.allowed = 3
    conversation, answer = talk.begin()
    here, elsewhere = talk.runs, Runs(office, talk.runs.inference)
    head = talk.tokenizer.decode(talk.tokenizer.encode(TEXT)[:3])
    talk.until_saved(conversation, answer, head)
    talk.app.state.runs = elsewhere

    async def work() -> Reply:
        reading = asyncio.create_task(talk.reading(answer))
        await asyncio.sleep(0.03)
        talk.allowed = 10**9
        return await reading

    assert said(talk.run(work())) == TEXT
    talk.allowed = 3
    talk.app.state.runs = here
    second = talk.act(answer, "regenerate")["id"]
    talk.until_saved(conversation, second, head)
    talk.app.state.runs = elsewhere
    assert talk.act(second, "stop")["status"] == "stopped"
    talk.allowed = 4
    talk.until(lambda: not here.open and not talk.engine.open)
    found = talk.message(conversation, second)
    assert (found["status"], found["content"]) == ("stopped", head)
    talk.app.state.runs = here


def test_a_page_that_reads_another_process_learns_of_deletion(
    talk: Talk, office: Office, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsv2.service.chats.events.POLL_SECONDS", 0.01)
    talk.allowed = 0
    conversation, answer = talk.begin()
    here = talk.runs
    talk.app.state.runs = Runs(office, talk.runs.inference)

    async def work() -> Reply:
        reading = asyncio.create_task(talk.reading(answer))
        await asyncio.sleep(0.03)
        deleted = await talk.browser.http.delete(f"/api/chat/conversations/{conversation}")
        assert deleted.status_code == 204
        return await reading

    assert talk.run(work()).named == []
    talk.app.state.runs = here
    talk.allowed = 1  # it writes, and learns of it too
    talk.until(lambda: not here.open)


def test_an_answer_that_says_nothing_is_renewed(
    talk: Talk, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsv2.service.chats.run.RENEW_SECONDS", 0.0)
    talk.allowed = 0
    _, answer = talk.begin()

    def expires() -> int:
        with store.read() as db:
            query = sa.select(messages.c.expires_at).where(messages.c.id == answer)
            return int(db.execute(query).scalar_one())

    first = expires()
    talk.until(lambda: expires() > first)
