"""Conversations, messages, answers under way and presets: F59, and what is bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.store import Store, backup, chat_answers, chat_messages, chats, models, presets
from dsv2.service.store.chat_answers import Outcome, Progress
from dsv2.service.store.chat_messages import AnswerUsage, Attachment, Failure, Lease, Message
from dsv2.service.store.chats import Conversation
from dsv2.service.store.errors import (
    ConflictError,
    FieldError,
    LimitError,
    NotFoundError,
    StoreError,
)
from tests.service.store.make import NOW, customer

LEASE = Lease("process_1", NOW + 1000)


@pytest.fixture
def user(store: Store) -> str:
    with store.write() as db:
        return customer(db).user_id


@pytest.fixture
def other(store: Store) -> str:
    with store.write() as db:
        return customer(db, "b@example.org").user_id


def begin(db: Connection, user: str, now: int = NOW, **fields: Any) -> Conversation:
    return chats.create_conversation(db, user, now=now, **fields)


def ask(
    db: Connection, user: str, conversation: str, content: str = "Why?",
    parent: str | None = None, **fields: Any,
) -> tuple[Message, Message]:  # fmt: skip
    return chat_messages.ask(
        db, user, conversation, parent_id=parent, content=content, lease=LEASE, now=NOW + 1,
        **fields,
    )  # fmt: skip


def end(
    db: Connection, answer: Message, text: str = "So.", status: str = "complete",
    finish: str | None = "stop", failure: Failure | None = None, tokens: str | None = None,
) -> None:  # fmt: skip
    progress = Progress(text, AnswerUsage(10, 4, 2, 500), "tiny", tokens)
    outcome = Outcome(status, failure, finish)
    assert chat_answers.finish(db, answer.id, "process_1", progress, outcome, len(text))


def test_a_conversation_is_kept_as_it_was_given(store: Store, user: str) -> None:
    fields = {
        "title": "Träume", "tags": ("a", "ä b"), "system": "Be brief.",
        "params": {"temperature": 0.5, "stop": ["\n\n"]},
    }  # fmt: skip
    with store.write() as db:
        made = begin(db, user, **fields)
    with store.read() as db:
        found = chats.get_conversation(db, user, made.id)
    assert found == made
    assert (found.title, found.tags, found.system) == ("Träume", ("a", "ä b"), "Be brief.")
    assert found.params == fields["params"] and found.leaf_id is None and not found.is_pinned


def test_the_first_message_names_a_conversation(store: Store, user: str) -> None:
    with store.write() as db:
        plain, named = begin(db, user), begin(db, user, title="Mine")
        for one in (plain, named):
            _, answer = ask(db, user, one.id, "  \n  What\tis   17 + 25?\nTell me.")
            end(db, answer)
            ask(db, user, one.id, "More", answer.id)
        titles = [chats.get_conversation(db, user, one.id).title for one in (plain, named)]
        files = begin(db, user)
        ask(db, user, files.id, "", attachments=[Attachment("notes.txt", "x")])
        assert chats.get_conversation(db, user, files.id).title == "notes.txt"
    assert titles == ["What is 17 + 25?", "Mine"]
    assert len(chat_messages.title_of("word " * 100)) <= 80
    assert chat_messages.title_of("x" * 100) == "x" * 79 + "…"


def test_messages_are_a_tree(store: Store, user: str) -> None:
    with store.write() as db:
        made = begin(db, user)
        first, answer = ask(db, user, made.id, "One", attachments=[Attachment("a.py", "1")])
        end(db, answer)
        second, last = ask(db, user, made.id, "Two", answer.id)
        end(db, last)
        edit, edited = ask(db, user, made.id, "Zwei", answer.id)
        end(db, edited)
        again = chat_messages.answer_again(db, user, last.id, lease=LEASE, now=NOW + 2)
        assert again.parent_id == second.id and again.status == "running"
        path = chat_messages.path_to(db, user, last.id)
        assert [one.id for one in path] == [first.id, answer.id, second.id, last.id]
        assert path[0].attachments == (Attachment("a.py", "1"),)
        found = chat_messages.messages_of(db, user, made.id)
        assert [one.id for one in found] == [
            first.id, answer.id, second.id, last.id, edit.id, edited.id, again.id,
        ]  # fmt: skip
        assert chats.get_conversation(db, user, made.id).leaf_id == again.id


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"title": "x" * 201}, "title"),
        ({"title": "a\0"}, "title"),
        ({"system": "x" * (chats.MAX_SYSTEM + 1)}, "system"),
        ({"system": "ä" * chats.MAX_SYSTEM}, "system"),
        ({"tags": ["a"] * 2}, "tags"),
        ({"tags": [str(n) for n in range(21)]}, "tags"),
        ({"tags": ["x" * 51]}, "tags[0]"),
        ({"tags": [""]}, "tags[0]"),
        ({"params": {"stop": ["x" * chats.MAX_PARAMS]}}, "params"),
    ],
)
def test_conversations_are_bounded(
    store: Store, user: str, fields: dict[str, Any], field: str
) -> None:
    with store.write() as db, pytest.raises(FieldError) as caught:
        begin(db, user, **fields)
    assert caught.value.field == field


def test_messages_are_bounded(store: Store, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    most = chat_messages.MAX_CONTENT
    files = [Attachment("a", "x" * (most // 2)), Attachment("b", "x" * (most // 2 + 1))]
    with store.write() as db:
        made = begin(db, user)
        for content, attachments, field in (
            ("", [], "content"),
            (" \n", [], "content"),
            ("x" * (most + 1), [], "content"),
            ("ä" * most, [], "content"),
            ("a\0", [], "content"),
            ("x", files, "attachments"),
            ("x", [Attachment("", "x")], "attachments[0].name"),
            ("x", [Attachment("a", "a\0")], "attachments[0].text"),
            ("x", [Attachment("a", "x")] * 51, "attachments"),
        ):
            with pytest.raises(FieldError) as caught:
                ask(db, user, made.id, content, attachments=attachments)
            assert caught.value.field == field
        assert chat_messages.messages_of(db, user, made.id) == []
        monkeypatch.setattr(chat_messages, "MAX_MESSAGES", 3)
        _, answer = ask(db, user, made.id)
        with pytest.raises(ConflictError, match="3 messages"):
            ask(db, user, made.id)
        monkeypatch.setattr(chat_messages, "MAX_MESSAGES", 10)
        monkeypatch.setattr(chat_messages, "MAX_SIZE", 10)
        end(db, answer, "1234567")  # with "Why?" eleven
        with pytest.raises(ConflictError, match="11 bytes"):
            ask(db, user, made.id, "x")
        with pytest.raises(ConflictError, match="11 bytes"):
            chat_messages.answer_again(db, user, answer.id, lease=LEASE, now=NOW)


def test_what_one_user_has_is_bounded(
    store: Store, user: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chats, "MAX_CONVERSATIONS", 2)
    monkeypatch.setattr(presets, "MAX_PRESETS", 1)
    monkeypatch.setattr(chat_messages, "MAX_RUNNING", 2)
    with store.write() as db:
        made = [begin(db, user) for _ in range(2)]
        with pytest.raises(ConflictError, match="2 conversations"):
            begin(db, user)
        begin(db, other)
        presets.create_preset(db, user, name="a", system="", params={}, now=NOW)
        with pytest.raises(ConflictError, match="1 presets"):
            presets.create_preset(db, user, name="b", system="", params={}, now=NOW)
        answers = [ask(db, user, one.id)[1] for one in made]
        with pytest.raises(LimitError, match="2 answers"):
            ask(db, user, made[0].id)
        with pytest.raises(LimitError):
            chat_messages.answer_again(db, user, answers[0].id, lease=LEASE, now=NOW)
        end(db, answers[0], status="stopped", finish=None)
        chat_messages.resume(db, user, answers[0].id, lease=LEASE, now=NOW)
        end(db, answers[0], status="stopped", finish=None)
        ask(db, user, made[0].id)
        with pytest.raises(LimitError):
            chat_messages.resume(db, user, answers[0].id, lease=LEASE, now=NOW)


def test_a_message_follows_an_answer_of_its_conversation(store: Store, user: str) -> None:
    with store.write() as db:
        made, another = begin(db, user), begin(db, user)
        question, answer = ask(db, user, made.id)
        with pytest.raises(ConflictError, match="still running"):
            ask(db, user, made.id, parent=answer.id)
        end(db, answer)
        for conversation, parent in ((another, answer), (made, question)):
            with pytest.raises(FieldError, match="parent_id is no answer"):
                ask(db, user, conversation.id, parent=parent.id)
        with pytest.raises(FieldError):
            ask(db, user, made.id, parent="message_0")
        with pytest.raises(FieldError, match="leaf_id"):
            chats.change_conversation(db, user, another.id, {"leaf_id": answer.id})
        with pytest.raises(ConflictError, match="only an answer"):
            chat_messages.answer_again(db, user, question.id, lease=LEASE, now=NOW)


def test_pages_go_on_where_one_ended(store: Store, user: str) -> None:
    with store.write() as db:
        made = [begin(db, user, NOW + n // 2, title=str(n)) for n in range(7)]
        chats.change_conversation(db, user, made[1].id, {"is_pinned": True})
        seen: list[str] = []
        before = None
        while True:
            page, before = chats.list_conversations(db, user, before=before, limit=3)
            assert len(page) == 3 or before is None
            seen += [one.id for one in page]
            if before is None:
                break
        wanted = sorted(made, key=lambda one: (one.updated_at, one.id), reverse=True)
        wanted.remove(made[1])
        assert seen == [made[1].id, *(one.id for one in wanted)]
        for wrong in ("", "1", "0.1.x", "0.99999999999999999999.conversation_" + "0" * 24):
            with pytest.raises(FieldError, match="before"):
                chats.list_conversations(db, user, before=wrong)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("apple", ["a", "c"]),
        ("APPLE", ["a", "c"]),
        ("100%", ["b"]),
        ("0%m", []),
        ("_", ["b"]),
        ("\\", ["b"]),
        ("secret", []),
        ("' OR 1=1 --", []),
    ],
)
def test_titles_and_contents_are_searched(
    store: Store, user: str, other: str, query: str, found: list[str]
) -> None:
    with store.write() as db:
        begin(db, user, title="a Apple pie")
        made = begin(db, user, title="b 100% more_or\\less")
        ask(db, user, made.id, "pears")
        made = begin(db, user, title="c")
        _, answer = ask(db, user, made.id, "pears")
        end(db, answer, "rather an apple")
        made = begin(db, other, title="d apple")
        ask(db, other, made.id, "secret apple")
        page, _ = chats.list_conversations(db, user, query=query)
    assert sorted(one.title[0] for one in page) == found


def test_conversations_are_found_by_a_whole_tag(store: Store, user: str) -> None:
    with store.write() as db:
        begin(db, user, title="1", tags=["work", "a%"])
        begin(db, user, title="2", tags=["homework", 'x"work"y', "ä\\"])

        def titles(tag: str) -> list[str]:
            return [one.title for one in chats.list_conversations(db, user, tag=tag)[0]]

        assert titles("work") == ["1"] and titles("WORK") == ["1"]
        assert titles('x"work"y') == ["2"] and titles("ä\\") == ["2"] and titles("a%") == ["1"]
        assert titles("%") == titles("wor") == []


def test_tags_are_those_of_all_conversations(store: Store, user: str, other: str) -> None:
    with store.write() as db:
        for tags in ([], ["work", "a%"], ["ä\\", "work"]):
            begin(db, user, tags=tags)
        begin(db, other, tags=["theirs"])
        assert chats.tags_of(db, user) == ["a%", "work", "ä\\"]
        assert chats.tags_of(db, other) == ["theirs"]


def test_nothing_of_others_can_be_had(store: Store, user: str, other: str) -> None:
    """F59."""
    with store.write() as db:
        made = begin(db, user, title="mine")
        question, answer = ask(db, user, made.id)
        end(db, answer, status="stopped", finish=None, tokens="[]")
        preset = presets.create_preset(db, user, name="a", system="s", params={}, now=NOW)
        lease, now = LEASE, NOW
    calls: list[Any] = [
        lambda db: chats.get_conversation(db, other, made.id),
        lambda db: chats.get_heading(db, other, made.id),
        lambda db: chats.change_conversation(db, other, made.id, {"title": "theirs"}),
        lambda db: chats.change_conversation(db, other, made.id, {"leaf_id": answer.id}),
        lambda db: chats.delete_conversation(db, other, made.id),
        lambda db: chat_messages.get_message(db, other, question.id),
        lambda db: chat_messages.path_to(db, other, answer.id),
        lambda db: chat_messages.tokens_of(db, other, answer.id),
        lambda db: ask(db, other, made.id),
        lambda db: ask(db, other, begin(db, other).id, parent=answer.id),
        lambda db: chat_messages.answer_again(db, other, answer.id, lease=lease, now=now),
        lambda db: chat_messages.resume(db, other, answer.id, lease=lease, now=now),
        lambda db: presets.get_preset(db, other, preset.id),
        lambda db: presets.change_preset(db, other, preset.id, {"name": "b"}),
        lambda db: presets.delete_preset(db, other, preset.id),
    ]
    for call in calls:
        with pytest.raises((NotFoundError, FieldError)), store.write() as db:
            call(db)
    with store.write() as db:
        assert not chat_answers.stop(db, other, answer.id)
        assert chat_messages.messages_of(db, other, made.id) == []
        assert (
            chats.list_conversations(db, other)[0] == [] and presets.list_presets(db, other) == []
        )
        assert chats.conversation_ids_of(db, other) == []
        assert chats.get_conversation(db, user, made.id).title == "mine"
        assert len(chat_messages.messages_of(db, user, made.id)) == 2
        assert presets.list_presets(db, user) == [preset]


def test_an_answer_grows_and_ends(store: Store, user: str) -> None:
    with store.write() as db:
        made = begin(db, user)
        _, answer = ask(db, user, made.id)
        assert (answer.content, answer.status, answer.usage) == ("", "running", None)
        progress = Progress("So", AnswerUsage(10, 4, 1, 3), "tiny", '[{"text":"So"}]')
        later = Lease("process_1", NOW + 9000)
        assert chat_answers.save(db, answer.id, later, progress)
        found = chat_messages.get_message(db, user, answer.id)
        assert (found.content, found.status, found.model) == ("So", "running", "tiny")
        assert chat_messages.tokens_of(db, user, answer.id) == '[{"text":"So"}]'
        end(db, answer, "So.", tokens="[1]")
        found = chat_messages.get_message(db, user, answer.id)
        assert (found.content, found.status, found.finish) == ("So.", "complete", "stop")
        assert found.usage == AnswerUsage(10, 4, 2, 500)
        assert not chat_answers.save(db, answer.id, later, progress)
        with pytest.raises(ConflictError):
            chat_messages.resume(db, user, answer.id, lease=LEASE, now=NOW)


@pytest.mark.parametrize(
    ("status", "finish", "failure"),
    [
        ("stopped", None, None),
        ("failed", None, Failure("engine_lost", "It is gone")),
        ("complete", "length", None),
    ],
)
def test_what_has_not_come_to_its_end_goes_on(
    store: Store, user: str, status: str, finish: str | None, failure: Failure | None
) -> None:
    with store.write() as db:
        made = begin(db, user)
        question, answer = ask(db, user, made.id)
        end(db, answer, status=status, finish=finish, failure=failure)
        assert chat_messages.get_message(db, user, answer.id).failure == failure
        again = chat_messages.resume(db, user, answer.id, lease=LEASE, now=NOW + 5)
        assert (again.status, again.failure, again.finish) == ("running", None, None)
        assert again.content == "So."
        with pytest.raises(ConflictError):
            chat_messages.resume(db, user, answer.id, lease=LEASE, now=NOW)
        with pytest.raises(ConflictError):
            chat_messages.resume(db, user, question.id, lease=LEASE, now=NOW)


def test_who_stops_or_deletes_an_answer_ends_it(store: Store, user: str) -> None:
    with store.write() as db:
        made = begin(db, user)
        _, first = ask(db, user, made.id)
        _, second = ask(db, user, made.id)
        assert chat_answers.stop(db, user, first.id)
        assert not chat_answers.stop(db, user, first.id)
        chats.delete_conversation(db, user, begin(db, user).id)
        chats.delete_conversation(db, user, made.id)
        progress = Progress("x", AnswerUsage())
        for one in (first, second):
            assert not chat_answers.save(db, one.id, LEASE, progress)
            done = chat_answers.finish(db, one.id, "process_1", progress, Outcome("complete"), 1)
            assert not done
        left = sa.select(sa.func.count()).select_from(models.messages)
        assert db.execute(left).scalar_one() == 0
        with pytest.raises(NotFoundError):
            chats.delete_conversation(db, user, made.id)


def test_what_a_dead_process_has_left_is_interrupted(store: Store, user: str) -> None:
    with store.write() as db:
        made = begin(db, user)
        _, lost = ask(db, user, made.id)
        chat_answers.save(db, lost.id, LEASE, Progress("As far as", AnswerUsage(10, 0, 3, 9)))
        _, done = ask(db, user, made.id)
        end(db, done)
        assert chat_answers.interrupt_lost(db, now=NOW, spare="process_1") == 0
        if not store.is_sqlite:
            assert chat_answers.interrupt_lost(db, now=NOW, spare="process_2") == 0
        assert chat_answers.interrupt_lost(db, now=NOW + 1000, spare="process_2") == 1
        found = chat_messages.get_message(db, user, lost.id)
        assert (found.status, found.content) == ("failed", "As far as")
        assert found.failure and found.failure.code == "interrupted"
        assert chat_messages.get_message(db, user, done.id).status == "complete"


def test_an_export_for_operators_has_no_text(store: Store, user: str, tmp_path: Path) -> None:
    with store.write() as db:
        made = begin(db, user, title="secret", tags=["secret"], system="secret")
        files = [Attachment("secret", "secret")]
        _, answer = ask(db, user, made.id, "secret", attachments=files)
        end(db, answer, "secret", tokens='["secret"]')
        presets.create_preset(db, user, name="secret", system="secret", params={}, now=NOW)
    rows = backup.export(store, tmp_path / "export")
    assert (rows["conversations"], rows["messages"], rows["presets"]) == (1, 2, 1)
    text = "".join(file.read_text() for file in (tmp_path / "export").iterdir())
    assert answer.id in text and "secret" not in text


def test_presets_are_changed_bit_by_bit(store: Store, user: str) -> None:
    with store.write() as db:
        made = presets.create_preset(
            db, user, name="a", system="s", params={"temperature": 1.0}, now=NOW
        )
        changed = presets.change_preset(db, user, made.id, {"name": "b"})
        assert (changed.name, changed.system, changed.params) == ("b", "s", {"temperature": 1.0})
        with pytest.raises(FieldError):
            presets.change_preset(db, user, made.id, {"name": ""})
        presets.delete_preset(db, user, made.id)
        with pytest.raises(StoreError):
            presets.delete_preset(db, user, made.id)


def test_a_user_of_nobody_has_nothing(store: Store) -> None:
    with store.write() as db, pytest.raises(NotFoundError):
        begin(db, "user_0")
