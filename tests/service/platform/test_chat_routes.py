"""Conversations, presets, files and the fill-in view: F59, F60, F61, and what is bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

import dsv2
from dsv2.service.platform.office import Office
from dsv2.service.store import Store, chats
from dsv2.service.store.settings import change_setting
from tests.service.asgi import Reply, call
from tests.service.platform.admitting import check_books
from tests.service.platform.site import ORIGIN, add_person
from tests.service.platform.talking import TEXT, Talk

CHATS = "/api/chat/conversations"


@pytest.fixture
def talk(office: Office) -> Iterator[Talk]:
    made = Talk(office)
    yield made
    made.close()


def test_a_conversation_is_made_changed_found_and_deleted(talk: Talk) -> None:
    body = {"title": "First", "tags": ["a"], "system": "Be brief.", "params": {"temperature": 0.5}}
    answer = talk.browser.post(CHATS, body)
    made = answer.json()
    assert answer.status_code == 201
    assert {name: made[name] for name in body} == body
    assert set(made) == {
        "id", "title", "tags", "created_at", "updated_at", "is_pinned", "system", "params",
        "leaf_id", "messages",
    }  # fmt: skip
    path = f"{CHATS}/{made['id']}"
    assert talk.browser.get(path).json() == made
    changed = talk.browser.patch(path, {"title": "Second", "is_pinned": True}).json()
    assert (changed["title"], changed["is_pinned"], changed["tags"]) == ("Second", True, ["a"])
    assert set(changed) == {"id", "title", "tags", "created_at", "updated_at", "is_pinned"}
    talk.browser.patch(path, {"params": {"seed": 1}, "tags": [], "system": ""})
    found = talk.browser.get(path).json()
    assert (found["params"], found["tags"], found["system"]) == ({"seed": 1}, [], "")
    assert talk.browser.get(f"{CHATS}?query=second").json()["conversations"] == [
        changed | {"tags": []}
    ]
    nothing = {"conversations": [], "next": None, "tags": []}
    assert talk.browser.get(f"{CHATS}?tag=a").json() == nothing
    assert talk.browser.delete(path).status_code == 204
    assert talk.browser.get(path).status_code == talk.browser.delete(path).status_code == 404


def test_the_branch_that_is_shown_is_chosen(talk: Talk) -> None:
    conversation, answer = talk.begin()
    talk.ended(answer)
    other = talk.act(answer, "regenerate")["id"]
    talk.ended(other)
    path = f"{CHATS}/{conversation}"
    assert talk.whole(conversation)["leaf_id"] == other
    talk.browser.patch(path, {"leaf_id": answer})
    assert talk.whole(conversation)["leaf_id"] == answer
    refused = talk.browser.patch(path, {"leaf_id": "message_0"})
    assert refused.status_code == 422 and refused.json()["error"]["param"] == "leaf_id"
    assert talk.browser.patch(path, {"leaf_id": None}).status_code == 200
    assert talk.whole(conversation)["leaf_id"] is None


def test_conversations_come_in_pages(talk: Talk) -> None:
    for number in range(5):
        talk.browser.post(CHATS, {"title": str(number)})
    seen: list[str] = []
    page = talk.browser.get(f"{CHATS}?limit=2").json()
    while True:
        seen += [one["title"] for one in page["conversations"]]
        if page["next"] is None:
            break
        page = talk.browser.get(f"{CHATS}?limit=2&before={page['next']}").json()
    assert sorted(seen) == ["0", "1", "2", "3", "4"]
    for query in ("limit=0", "limit=201", "before=x", f"query={'x' * 201}", f"tag={'x' * 51}"):
        assert talk.browser.get(f"{CHATS}?{query}").status_code in (400, 422)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"title": "x" * 201}, 422, "title"),
        ({"title": 5}, 400, "title"),
        ({"title": "a\0"}, 422, "title"),
        ({"title": "\ud800"}, 400, "title"),
        ({"tags": ["x" * 51]}, 422, "tags[0]"),
        ({"tags": "a"}, 400, "tags"),
        ({"system": "x" * (64 * 1024 + 1)}, 422, "system"),
        ({"params": {"temperature": 9}}, 400, "params.temperature"),
        ({"params": {"temperature": "hot"}}, 400, "params.temperature"),
        ({"params": {"top_k": -2}}, 400, "params.top_k"),
        ({"params": {"max_tokens": 0}}, 400, "params.max_tokens"),
        ({"params": {"stop": ["x" * 1001]}}, 400, "params.stop[0]"),
        ({"params": {"model": "gone"}}, 404, "params.model"),
        ({"params": {"n": 2}}, 400, "params.n"),
        ({"params": {"logit_bias": {}}}, 400, "params.logit_bias"),
        ({"user_id": "user_1"}, 400, "user_id"),
        ({"id": "conversation_1"}, 400, "id"),
        ({"messages": []}, 400, "messages"),
        ({"leaf_id": None}, 400, "leaf_id"),
        ([], 400, None),
    ],
)
def test_what_a_conversation_may_not_have_is_named(
    talk: Talk, body: Any, status: int, param: str | None
) -> None:
    """F60."""
    answer = talk.browser.ask(
        "POST", CHATS, content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["param"] == param
    assert talk.browser.get(CHATS).json()["conversations"] == []


@pytest.mark.parametrize(
    "body",
    [
        {"title": None},
        {"params": None},
        {"is_pinned": 1},
        {"user_id": "user_1"},
        {"updated_at": 5},
        {"size": 0},
        {"messages": []},
    ],
)
def test_what_may_not_be_changed_is_refused(talk: Talk, body: Any) -> None:
    """F60."""
    made = talk.browser.post(CHATS, {"title": "mine"}).json()
    answer = talk.browser.patch(f"{CHATS}/{made['id']}", body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == next(iter(body))
    assert talk.whole(made["id"]) == made


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"content": "x"}, 400, "parent_id"),
        ({"parent_id": None}, 400, "content"),
        ({"parent_id": "message_0", "content": "x"}, 422, "parent_id"),
        ({"parent_id": None, "content": " "}, 422, "content"),
        ({"parent_id": None, "content": "x", "role": "assistant"}, 400, "role"),
        ({"parent_id": None, "content": "x", "status": "complete"}, 400, "status"),
        ({"parent_id": None, "content": "x", "attachments": [{"name": "a"}]}, 400,
         "attachments[0].text"),
        ({"parent_id": None, "content": "x", "attachments": [{"name": "", "text": ""}]}, 422,
         "attachments[0].name"),
        ({"parent_id": None, "content": "x" * ((1 << 20) + 1)}, 422, "content"),
    ],
)  # fmt: skip
def test_what_a_message_may_not_have_is_named(
    talk: Talk, body: Any, status: int, param: str
) -> None:
    """F60."""
    made = talk.browser.post(CHATS, {}).json()
    answer = talk.browser.post(f"{CHATS}/{made['id']}/messages", body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert talk.whole(made["id"]) == made and talk.engine.requests == []


def test_what_is_anothers_is_not_found(talk: Talk, store: Store) -> None:
    """F59: with the same words as what is nobody's, and nothing happens to it."""
    conversation, answer = talk.begin("secret question", params={"logprobs": True})
    talk.ended(answer)
    preset = talk.browser.post("/api/chat/presets", {"name": "mine"}).json()["id"]
    before = talk.whole(conversation)
    other = talk.site.logged_in(add_person(store, "other@example.org", paid=10**6))
    message = {"parent_id": None, "content": "x"}
    asked: list[tuple[str, str, Any]] = [
        ("GET", "conversations/ID", None),
        ("PATCH", "conversations/ID", {"title": "theirs"}),
        ("PATCH", "conversations/ID", {"leaf_id": answer}),
        ("DELETE", "conversations/ID", None),
        ("POST", "conversations/ID/messages", message),
        ("GET", "conversations/ID/export", None),
        ("GET", "conversations/ID/export?format=markdown", None),
        ("POST", "messages/ID/regenerate", None),
        ("POST", "messages/ID/continue", None),
        ("POST", "messages/ID/stop", None),
        ("GET", "messages/ID/events", None),
        ("GET", "messages/ID/tokens", None),
        ("PATCH", "presets/ID", {"name": "theirs"}),
        ("DELETE", "presets/ID", None),
    ]
    ids = {"conversations": conversation, "messages": answer, "presets": preset}
    for method, path, body in asked:
        mine, nobodys = (
            other.ask(method, f"/api/chat/{path.replace('ID', found)}", json=body)
            for found in (ids[path.split("/")[0]], "conversation_0")
        )
        assert mine.status_code == nobodys.status_code == 404, path
        words = mine.json()["error"]["message"]
        for found in ids.values():
            words = words.replace(found, "conversation_0")
        assert words == nobodys.json()["error"]["message"]
    made = other.post(CHATS, {}).json()["id"]
    reply = other.post(f"{CHATS}/{made}/messages", {"parent_id": answer, "content": "x"})
    assert reply.status_code == 422
    assert other.get(f"{CHATS}?query=secret").json()["conversations"] == []
    assert "secret" not in other.get("/api/chat/export").text
    assert other.get("/api/chat/presets").json() == {"presets": []}
    assert talk.whole(conversation) == before


PAGES: list[dict[str, str]] = [
    {"Origin": "https://evil.com", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "null"},
    {"Origin": "http://evil.localhost:8000", "Sec-Fetch-Site": "same-site"},
    {},
]


@pytest.mark.parametrize("headers", PAGES)
def test_pages_of_other_sites_change_nothing(talk: Talk, headers: dict[str, str]) -> None:
    """F61: with the session's cookie."""
    conversation, answer = talk.begin()
    talk.ended(answer)
    before = talk.whole(conversation)
    client = talk.site.client(headers=headers | {"Cookie": talk.cookie})
    message = {"parent_id": None, "content": "x"}
    asked: list[tuple[str, str, Any]] = [
        ("POST", "conversations", {}),
        ("PATCH", f"conversations/{conversation}", {"title": "theirs"}),
        ("DELETE", f"conversations/{conversation}", None),
        ("POST", f"conversations/{conversation}/messages", message),
        ("POST", f"messages/{answer}/regenerate", None),
        ("POST", f"messages/{answer}/continue", None),
        ("POST", f"messages/{answer}/stop", None),
        ("POST", "import", {"conversations": []}),
        ("POST", "presets", {"name": "a"}),
        ("POST", "fill", {"model": "tiny", "prefix": "a", "suffix": "b"}),
    ]
    for method, path, body in asked:
        refused = client.ask(method, f"/api/chat/{path}", json=body)
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "cross_site", path
    assert talk.whole(conversation) == before and len(talk.engine.requests) == 1


def test_a_form_is_no_request(talk: Talk) -> None:
    """F61: what a form can send without asking first is refused by its kind."""
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = talk.browser.ask("POST", CHATS, content="{}", headers={"Content-Type": kind})
        assert answer.status_code == 415
    twice = talk.browser.ask(
        "POST", CHATS, content='{"title": "a", "title": "b"}',
        headers={"Content-Type": "application/json"},
    )  # fmt: skip
    assert twice.status_code == 400


def test_the_guest_has_conversations_and_other_sites_pages_do_not(
    store: Store, office: Office, folder: Any
) -> None:
    """F61: also without a cookie."""
    talk = Talk(Office(store, folder=folder, guest=True))
    guest = talk.site.browser()
    made = guest.post(CHATS, {"title": "a guest's"})
    assert made.status_code == 201
    path = f"{CHATS}/{made.json()['id']}"
    sent = guest.post(f"{path}/messages", {"parent_id": None, "content": "Why?"})
    assert sent.status_code == 201
    talk.run(talk.runs.wait(5.0))
    assert guest.get(path).json()["messages"][1]["content"] == TEXT
    assert talk.browser.get(path).status_code == 404
    for headers in PAGES[:3]:
        assert talk.site.client(headers=headers).post(CHATS, {}).status_code == 401
    assert talk.site.client(client="10.0.0.9").get(CHATS).status_code == 401
    talk.close()


def test_presets(talk: Talk) -> None:
    body = {"name": "Poet", "system": "Rhyme.", "params": {"temperature": 1.5}}
    made = talk.browser.post("/api/chat/presets", body).json()
    assert made == body | {"id": made["id"]}
    path = f"/api/chat/presets/{made['id']}"
    assert talk.browser.patch(path, {"params": {}}).json()["params"] == {}
    for wrong in (
        {"name": ""},
        {"name": None},
        {"params": {"top_p": 2}},
        {"id": "x"},
        {"user_id": "x"},
    ):
        assert talk.browser.patch(path, wrong).status_code in (400, 422)
    assert talk.browser.get("/api/chat/presets").json() == {"presets": [made | {"params": {}}]}
    assert talk.browser.delete(path).status_code == 204
    assert talk.browser.get("/api/chat/presets").json() == {"presets": []}


def without_ids(value: Any) -> Any:
    """A conversation as it is, whatever its ids are."""
    value = json.loads(json.dumps(value))
    names = {message["id"]: place for place, message in enumerate(value["messages"])}
    for message in value["messages"]:
        message["id"] = names[message["id"]]
        message["parent_id"] = names.get(message["parent_id"])
    value["leaf_id"] = names.get(value["leaf_id"])
    del value["id"]
    return value


def test_what_is_exported_can_be_imported(talk: Talk, store: Store) -> None:
    conversation, answer = talk.begin("Frage?", system="Be brief.", tags=["ä"])
    talk.ended(answer)
    files = [{"name": "a.py", "text": "print(1)"}]
    talk.ended(talk.say(conversation, "More", answer, attachments=files)["answer"]["id"])
    talk.ended(talk.act(answer, "regenerate")["id"])
    second, _ = talk.begin("Another")
    talk.run(talk.runs.wait(5.0))
    one = talk.browser.get(f"{CHATS}/{conversation}/export")
    assert one.headers["content-disposition"] == 'attachment; filename="Frage.json"'
    everything = talk.browser.get("/api/chat/export")
    assert everything.headers["content-disposition"].startswith("attachment;")
    assert len(everything.json()["conversations"]) == 2
    other = talk.site.logged_in(add_person(store, "other@example.org"))
    for exported, count in ((one, 1), (everything, 2)):
        answer = other.post("/api/chat/import", exported.json())
        assert answer.status_code == 200, answer.text
        added = answer.json()["conversations"]
        assert len(added) == count
        found = [other.get(f"{CHATS}/{one['id']}").json() for one in added]
        originals = exported.json()["conversations"]
        assert list(map(without_ids, found)) == list(map(without_ids, originals))
        assert not {one["id"] for one in found} & {conversation, second}
    assert other.get("/api/chat/export").json()["conversations"][0]["messages"]


def test_an_export_of_nothing_is_an_import_of_nothing(talk: Talk) -> None:
    exported = talk.browser.get("/api/chat/export").json()
    assert exported == {"conversations": []}
    assert talk.browser.post("/api/chat/import", exported).json() == {"conversations": []}


def message(place: int, parent: int | None, **fields: Any) -> Any:
    usual = {
        "id": str(place), "parent_id": None if parent is None else str(parent),
        "role": "user" if place % 2 == 0 else "assistant", "content": "x",
    }  # fmt: skip
    return usual | fields


@pytest.mark.parametrize(
    ("conversation", "place"),
    [
        ({"messages": [message(0, 5)]}, "messages[0].parent_id"),
        ({"messages": [message(1, None)]}, "messages[0].parent_id"),
        ({"messages": [message(0, None), message(2, 0)]}, "messages[1].parent_id"),
        ({"messages": [message(0, None), message(0, None)]}, "messages[1].id"),
        ({"messages": [message(0, 0)]}, "messages[0].parent_id"),
        ({"messages": [message(0, None, role="system")]}, "messages[0].role"),
        ({"messages": [message(0, None, status="done")]}, "messages[0].status"),
        ({"messages": [message(0, None, user_id="x")]}, "messages[0].user_id"),
        ({"messages": [message(0, None, finish="x")]}, "messages[0].finish"),
        ({"messages": [message(0, None, created_at=-1)]}, "messages[0].created_at"),
        ({"messages": [message(0, None, content="a\0")]}, "messages[0].content"),
        ({"leaf_id": "0"}, "leaf_id"),
        ({"title": "x" * 201}, "title"),
        ({"title": 5}, "title"),
        ({"params": {"temperature": 9}}, "params.temperature"),
        ({"user_id": "x"}, "user_id"),
        ({"updated_at": 2**60}, "updated_at"),
    ],
)
def test_a_malformed_import_is_refused_as_a_whole(
    talk: Talk, conversation: Any, place: str
) -> None:
    body = {"conversations": [{"title": "sound"}, conversation]}
    answer = talk.browser.post("/api/chat/import", body)
    assert answer.status_code in (400, 422)
    error = answer.json()["error"]
    assert error["param"] == f"conversations[1].{place}"
    assert error["message"].startswith(error["param"])
    assert talk.browser.get(CHATS).json()["conversations"] == []


def test_an_import_claims_nothing(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was running elsewhere runs nowhere; no date is ahead; no model need be here."""
    running = message(1, 0, status="running", usage=None)
    body = {
        "params": {"model": "theirs"},
        "updated_at": 2**50,
        "messages": [message(0, None), running],
    }
    [added] = talk.browser.post("/api/chat/import", {"conversations": [body]}).json()[
        "conversations"
    ]
    found = talk.whole(added["id"])
    assert found["updated_at"] < 2**50 and found["params"] == {"model": "theirs"}
    assert found["messages"][1]["failure"]["code"] == "interrupted"
    refused = talk.browser.post(f"/api/chat/messages/{found['messages'][1]['id']}/continue")
    assert refused.json()["error"]["param"] == "params.model"
    monkeypatch.setattr(chats, "MAX_CONVERSATIONS", 2)
    many = {"conversations": [{}, {}]}
    assert talk.browser.post("/api/chat/import", many).status_code == 409


def test_a_conversation_as_markdown(talk: Talk) -> None:
    conversation, answer = talk.begin("One", system="Be brief.", title="My *title*/../x")
    talk.ended(answer)
    files = [{"name": "a.md", "text": "````\nx"}]
    sent = talk.say(conversation, "Two", answer, attachments=files)["answer"]["id"]
    talk.ended(sent)
    talk.ended(talk.act(answer, "regenerate")["id"])
    talk.browser.patch(f"{CHATS}/{conversation}", {"leaf_id": sent})
    got = talk.browser.get(f"{CHATS}/{conversation}/export?format=markdown")
    assert got.headers["content-type"] == "text/markdown; charset=utf-8"
    assert got.headers["content-disposition"] == 'attachment; filename="My-title-x.md"'
    text, shown = got.text, talk.whole(conversation)
    assert "## User\n\nOne\n\n" in text and "\n\n`````\n````\nx\n`````\n\n" in text
    assert text.count(TEXT) == 2
    assert talk.browser.get(f"{CHATS}/{conversation}/export?format=pdf").status_code == 400

    # It comes in again, without the other branch.
    both = {"conversations": [{"markdown": text}, {"title": "sound"}]}
    added, _ = talk.browser.post("/api/chat/import", both).json()["conversations"]
    for one in shown["messages"]:
        one["usage"] = None
    branch = [one for one in shown["messages"] if one["parent_id"] != shown["messages"][0]["id"]]
    branch.insert(1, next(one for one in shown["messages"] if one["id"] == answer))
    found = talk.whole(added["id"])
    assert without_ids(found) == without_ids(shown | {"messages": branch})
    assert found["leaf_id"] == found["messages"][-1]["id"]
    empty = talk.browser.post(CHATS, {}).json()["id"]
    text = talk.browser.get(f"{CHATS}/{empty}/export?format=markdown").text
    assert text.startswith("# Conversation\n")
    [added] = talk.browser.post("/api/chat/import", {"conversations": [{"markdown": text}]}).json()[
        "conversations"
    ]
    assert without_ids(talk.whole(added["id"])) == without_ids(talk.whole(empty))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"markdown": "# Notes"}, "is no Markdown that was exported here"),
        ({"markdown": "<!-- dsv2 chat -->\n\n<!-- dsv2 x -->"}, "cannot be read at part 2"),
        ({"markdown": '<!-- dsv2 chat {"owner": 1} -->'}, "Extra inputs"),
        ({"markdown": "<!-- dsv2 chat -->\n\n<!-- dsv2 assistant -->"}, "an answer follows"),
        ({"markdown": 5}, "allowed is a text"),
        ({"markdown": "<!-- dsv2 chat -->", "title": "x"}, "nothing beside it"),
    ],
)
def test_markdown_that_is_refused(talk: Talk, given: Any, reason: str) -> None:
    answer = talk.browser.post("/api/chat/import", {"conversations": [{"title": "x"}, given]})
    assert answer.status_code in (400, 422)
    error = answer.json()["error"]
    assert error["param"].startswith("conversations[1]") and reason in error["message"]
    assert talk.browser.get(CHATS).json()["conversations"] == []


# The fill-in view.

GAP = {"model": "small", "prefix": "def f(", "suffix": "): pass"}


def fill(talk: Talk, body: Any, **options: Any) -> Reply:
    headers = {"cookie": talk.cookie, "origin": ORIGIN, "host": ORIGIN.removeprefix("http://")}
    reply: Reply = talk.run(call(talk.app, "/api/chat/fill", body, headers=headers, **options))
    return reply


def test_a_gap_is_filled_and_nothing_is_kept(talk: Talk, store: Store) -> None:
    reply = fill(talk, GAP | {"params": {"max_tokens": 9, "temperature": 0.0}})
    assert "".join(data["text"] for name, data in reply.named if name == "delta") == TEXT
    [(name, done)] = reply.named[-1:]
    assert name == "done" and done["finish"] == "stop"
    [request] = talk.engine.requests
    assert request.prompt_ids == tuple(
        talk.runs.inference.models.all[0].chat_format.fim("def f(", "): pass")
    )
    assert (request.params.max_tokens, request.params.temperature) == (9, 0.0)
    assert done["usage"]["prompt_tokens"] == len(request.prompt_ids)
    assert set(done["usage"]) == {"prompt_tokens", "cached_tokens", "completion_tokens", "seconds"}
    assert talk.browser.get(CHATS).json()["conversations"] == []
    check_books(store, talk.person)


def test_a_page_that_leaves_a_filling_ends_it(talk: Talk, store: Store) -> None:
    talk.allowed = 2

    async def leave(reply: Reply) -> bool:
        return b"delta" in reply.body

    fill(talk, GAP, leave=leave)
    talk.until(lambda: talk.engine.open == 0)
    assert len(talk.engine.cancelled) == 1
    check_books(store, talk.person)


def test_a_filling_that_fails_says_so(talk: Talk) -> None:
    talk.allowed, talk.error = 2, ValueError("/secret")
    name, error = fill(talk, GAP).named[-1]
    assert name == "error" and "secret" not in error["error"]["message"]
    for body, status, param in (
        (GAP | {"model": "gone"}, 404, "model"),
        (GAP | {"params": {"model": "tiny"}}, 400, "params.model"),
        (GAP | {"params": {"max_tokens": 10**9}}, 400, "prefix"),
        (GAP | {"params": {"top_p": 3}}, 400, "params.top_p"),
        ({"model": "tiny", "prefix": "x"}, 400, "suffix"),
        (GAP | {"n": 2}, 400, "n"),
    ):
        refused = fill(talk, body)
        assert (refused.status, refused.error["param"]) == (status, param)


# What the site begins with.


def test_the_site_says_who_one_is(talk: Talk, store: Store) -> None:
    found = talk.browser.get("/api/site").json()
    assert found == {
        "guest": False, "sign_up": True, "version": dsv2.__version__,
        "user": {"email": talk.person.email, "role": "user"},
    }  # fmt: skip
    with store.write() as db:
        change_setting(db, "sign_up_open", False, actor="test", now=1)
    nobody = talk.site.browser().get("/api/site")
    assert nobody.json() == found | {"sign_up": False, "user": None}
    assert nobody.headers["cache-control"] == "no-store" and "set-cookie" not in nobody.headers
    stale = talk.site.browser(headers={"Cookie": "dsv2-session=session-0"}).get("/api/site")
    assert stale.json()["user"] is None and "dsv2-session=" in stale.headers["set-cookie"]


def test_the_site_says_whether_one_may_be_a_guest(store: Store, folder: Any) -> None:
    talk = Talk(Office(store, folder=folder, guest=True))
    assert talk.site.browser().get("/api/site").json()["guest"]
    assert talk.site.browser().get("/api/site").json()["user"] is None
    assert not talk.site.browser(client="10.0.0.9").get("/api/site").json()["guest"]
    evil = talk.site.client(headers=PAGES[0]).get("/api/site").json()
    assert not evil["guest"] and evil["user"] is None
    talk.close()


def test_models_and_engines(talk: Talk, store: Store) -> None:
    assert talk.browser.get("/api/chat/models").json() == {
        "models": [{"name": "tiny", "max_context": 2048, "description": "a script"}]
    }
    admin = talk.site.logged_in(add_person(store, "admin@example.org", role="admin"))
    [engine] = admin.get("/api/admin/engines").json()["engines"]
    assert engine["model"] == "tiny" and engine["is_healthy"] is True
    assert {"running", "waiting", "free_blocks", "total_blocks", "generated_tokens", "steps",
            "step_seconds", "prompt_tokens", "cached_tokens"} <= set(engine)  # fmt: skip
