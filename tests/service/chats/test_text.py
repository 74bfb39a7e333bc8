"""The text of an answer while it grows: what readers get, wherever they begin."""

from __future__ import annotations

from dsv2.service.chats.text import Delta, GrowingText


def test_deltas_tell_how_many_tokens_they_took() -> None:
    text = GrowingText("Hel")
    reader = text.read(3)
    assert reader.take() is None
    text.add("lo", count=1)
    assert reader.take() == Delta(3, "lo", None, 1)
    text.add("", count=2)  # half a character
    assert reader.take() is None
    text.add("你", count=1)
    text.add("好", count=3)
    assert (delta := reader.take()) == Delta(5, "你好", None, 6)
    assert delta.shape == {"at": 5, "text": "你好", "count": 6}
    late = text.read(6).take()
    assert late is not None
    assert late.text == "好"


def test_tokens_are_told_also_without_text() -> None:
    text = GrowingText()
    reader = text.read(0)
    text.add("", [{"text": "\\xe4"}], count=1)
    assert reader.take() == Delta(0, "", [{"text": "\\xe4"}], 1)
    text.add("", [], count=1)
    assert reader.take() is None
