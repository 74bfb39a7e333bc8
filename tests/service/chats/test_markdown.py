"""What is exported as Markdown comes in again as it was."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dsv2.service.chats.markdown import conversation_in, markdown_of
from dsv2.service.chats.shapes import conversation_shape
from dsv2.service.store.chat_messages import Attachment, Failure, Message
from dsv2.service.store.chats import Conversation

Talk = tuple[Conversation, list[Message]]

SNARES = [
    "# Title", "## User", "## Assistant\n\nNo.", "<!-- dsv2 user -->", "<!-- dsv2-2 chat -->\n",
    '<!-- dsv2 file {"name": "a"} -->', "-->", "<!--", "```", "````\n", "~~~", "\n\n", "\r\n", "\r",
    " ", "\u2028", "\ufeff", "File `a`:\n\n```\nx\n```", '{"title": "x"}', "\\",
    "中文", "😀", "---",
]  # fmt: skip
"""What a reader of such a file could take for its own."""

plain = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.lists(
    st.one_of(st.sampled_from(SNARES), st.text(plain, max_size=8)), max_size=5
).map("".join)  # fmt: skip
names = texts.filter(bool)
times = st.integers(0, 2**53)


@st.composite
def messages(draw: st.DrawFn, place: int) -> Message:
    role = "assistant" if place % 2 else "user"
    files = draw(st.lists(st.builds(Attachment, names, texts), max_size=2))
    answered: dict[str, Any] = {}
    if role == "assistant":
        status = draw(st.sampled_from(["complete", "stopped", "failed"]))
        answered = {
            "status": status,
            "failure": Failure("overloaded", draw(names)) if status == "failed" else None,
            "finish": draw(st.sampled_from([None, "stop", "length"])),
            "model": draw(st.none() | names),
        }
    return Message(
        str(place), "c", str(place - 1) if place else None, role, draw(texts),
        tuple(files), created_at=draw(times), **answered,
    )  # fmt: skip


@st.composite
def talks(draw: st.DrawFn) -> Talk:
    said = [draw(messages(place)) for place in range(draw(st.integers(0, 5)))]
    params = draw(
        st.fixed_dictionaries({}, optional={"model": names, "stop": st.lists(names), "seed": times})
    )
    tags, leaf = draw(st.lists(names, max_size=2)), said[-1].id if said else None
    conversation = Conversation(
        id="c", title=draw(texts), tags=tuple(tags), is_pinned=draw(st.booleans()),
        created_at=draw(times), updated_at=draw(times), system=draw(texts), params=params,
        leaf_id=leaf,
    )  # fmt: skip
    return conversation, said


def whole(talk: Talk) -> dict[str, Any]:
    """A conversation as an import knows it, of what is not known without it."""
    shape = conversation_shape(*talk)
    del shape["id"]
    for message in shape["messages"]:
        del message["usage"]
    return shape


def read(text: str) -> dict[str, Any]:
    """What is in a file, with what an import takes for granted."""
    usual = {"tags": [], "is_pinned": False, "system": "", "params": {}, "leaf_id": None}
    dates = {"created_at": 0, "updated_at": 0}
    found = usual | dates | conversation_in(text)
    said = {"status": "complete", "failure": None, "finish": None, "model": None, "created_at": 0}
    return found | {"messages": [said | one for one in found["messages"]]}


@given(talks())
def test_what_is_written_is_read(talk: Talk) -> None:
    assert read(markdown_of(*talk)) == whole(talk)


@given(talks())
def test_what_editors_do_to_a_whole_file_is_undone(talk: Talk) -> None:
    text = markdown_of(*talk)
    assert read("\ufeff" + text) == whole(talk)
    if "\r" not in text:
        assert read(text.replace("\n", "\r\n")) == whole(talk)


@given(st.lists(st.sampled_from(SNARES) | st.text(plain, max_size=8)).map("\n".join))
@example('<!-- dsv2 chat {"messages": 5} -->\n\n<!-- dsv2 user {"id": []} -->\nx')
@example("<!-- dsv2 chat -->\n<!-- dsv2 user -->\n<!-- dsv2 file -->\nFile `a`:\n\n```\n```")
def test_whatever_is_in_a_file_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        json.dumps(conversation_in(text))


def talk_of(*said: str, **fields: Any) -> Talk:
    made = [
        Message(
            str(n), "c", str(n - 1) if n else None, "assistant" if n % 2 else "user", text,
            model="pocket" if n % 2 else None, created_at=1,
        )
        for n, text in enumerate(said)
    ]  # fmt: skip
    leaf = made[-1].id if made else None
    usual: dict[str, Any] = {
        "title": "Sums", "tags": (), "created_at": 1, "updated_at": 2, "is_pinned": False,
        "system": "", "params": {}, "leaf_id": leaf,
    }  # fmt: skip
    return Conversation(id="c", **(usual | fields)), made


def test_it_reads_well() -> None:
    talk = talk_of("What is 1 + 1?", "## Sums\n\nIt is 2.", system="Be brief.")
    assert markdown_of(*talk) == (
        "# Sums\n\n"
        '<!-- dsv2 chat {"created_at": 1, "updated_at": 2} -->\n\n'
        "<!-- dsv2 system -->\n## System\n\nBe brief.\n\n"
        '<!-- dsv2 user {"created_at": 1} -->\n## User\n\nWhat is 1 + 1?\n\n'
        '<!-- dsv2 assistant {"model": "pocket", "created_at": 1} -->\n## Assistant\n\n'
        "## Sums\n\nIt is 2.\n"
    )


def test_an_export_inside_a_message_stays_there() -> None:
    inner = markdown_of(*talk_of("Hi", "Hello"))
    outer = talk_of(inner, f"```markdown\n{inner}```", title="Outer")
    text = markdown_of(*outer)
    assert "<!-- dsv2-2 chat " in text and inner in text
    assert read(text) == whole(outer)
    assert [one["content"] for one in read(text)["messages"]] == [inner, f"```markdown\n{inner}```"]


def test_one_path_is_written() -> None:
    talk, said = talk_of("One", "Two")
    other = Message("9", "c", "0", "assistant", "Other")
    assert read(markdown_of(talk, [*said, other])) == whole((talk, said))


def test_a_file_may_be_written_by_hand() -> None:
    text = (
        "notes\n# Sums\n<!-- dsv2 chat -->\n<!-- dsv2 user -->\nOne\n<!-- dsv2 assistant -->\nTwo"
    )
    found = conversation_in(text)
    assert found["title"] == "Sums"
    assert [one["content"] for one in found["messages"]] == ["One", "Two"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no Markdown that was exported here: it has no line like <!-- dsv2 chat {…} -->"),
        ("# Notes\n\n## User\n\nHi\n", "is no Markdown"),
        ("<!-- dsv2 chat -->\n\n<!-- dsv2 robot -->\nx", "at part 2: a part “robot” has no place"),
        ("<!-- dsv2 chat -->\n\n<!-- dsv2 user\nx", "at part 2: its comment is <!-- dsv2 user"),
        ("<!-- dsv2 chat -->\n\n<!-- dsv2 chat -->", "at part 2: its comment is <!-- dsv2 chat"),
        ('<!-- dsv2 chat {"title": } -->', "at part 1: its comment has what is no JSON"),
        ("<!-- dsv2 chat -->\n\n<!-- dsv2 text -->\n\nx", "at part 2: a part “text” has no place"),
        (
            '<!-- dsv2 chat -->\n\n<!-- dsv2 user -->\n\n<!-- dsv2 file {"name": "a"} -->\nx',
            "at part 3: a file is “File `name`:” and a fenced block",
        ),
    ],
)
def test_what_is_no_such_file_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.compile("is no Markdown|cannot be read")) as caught:
        conversation_in(text)
    assert reason in str(caught.value)
