from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsv2.engine.output import OutputText
from dsv2.engine.request import SamplingParams
from dsv2.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(tiny_folder)


def run(tokenizer: Tokenizer, text: str, stops: list[str], **params: int) -> tuple[list[str], bool]:
    """Feed the tokens of ``text`` byte by byte, the hardest case, and collect the pieces."""
    output = OutputText(tokenizer, SamplingParams(stop=stops, **params))
    pieces: list[str] = []
    for byte in text.encode():
        token = next(i for i in range(256) if tokenizer.token_bytes(i) == bytes([byte]))
        piece, stopped = output.push(token)
        pieces.append(piece)
        if stopped:
            return pieces, True
    pieces.append(output.finish())
    return pieces, False


def test_a_stop_string_across_tokens_is_cut_and_never_shown(tokenizer: Tokenizer) -> None:
    pieces, stopped = run(tokenizer, "one END two", ["END"])
    assert stopped
    assert "".join(pieces) == "one "
    assert all("E" not in piece for piece in pieces)


def test_the_earliest_stop_wins(tokenizer: Tokenizer) -> None:
    assert "".join(run(tokenizer, "abcdef", ["def", "bc"])[0]) == "a"


def test_a_beginning_that_does_not_go_on_is_let_out(tokenizer: Tokenizer) -> None:
    pieces, stopped = run(tokenizer, "EN EN END", ["ENDE"])
    assert not stopped
    assert "".join(pieces) == "EN EN END"


def test_characters_come_whole(tokenizer: Tokenizer) -> None:
    pieces, _ = run(tokenizer, "日本é🙂", [])
    assert [piece for piece in pieces if piece] == ["日", "本", "é", "🙂"]
    assert "".join(run(tokenizer, "a本b", ["本"])[0]) == "a"


def test_stops_wait_for_min_tokens(tokenizer: Tokenizer) -> None:
    assert "".join(run(tokenizer, "abab", ["b"], min_tokens=3)[0]) == "aba"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=st.text(alphabet="ab c本", max_size=30),
    stops=st.lists(st.text(alphabet="ab c本", min_size=1, max_size=4), max_size=3),
)
def test_pieces_equal_the_text_up_to_the_first_stop(
    tokenizer: Tokenizer, text: str, stops: list[str]
) -> None:
    pieces, stopped = run(tokenizer, text, stops)
    # The first stop to be complete ends the answer; of those that are complete there, the one
    # that began first cuts it.
    ends = [place + len(stop) for stop in stops if (place := text.find(stop)) >= 0]
    if not ends:
        assert not stopped
        assert "".join(pieces) == text
        return
    assert stopped
    seen = text[: min(ends)]
    starts = [place for stop in stops if (place := seen.find(stop)) >= 0]
    assert "".join(pieces) == text[: min(starts)]
