"""Gaps in code as people ask an editor to fill them, with as much around them as it would show."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dsv2.recipes.pocket.corpus import texts_of
from dsv2.recipes.pocket.python_code import Code, code_of
from dsv2.recipes.pocket.snippets import SNIPPET_LINES, basic_snippets, snippets_of

SHOWN = 1500
"""Characters that a gap's prefix, and its suffix, hold at most."""
LINES = 8
BODY_LINES = 12
BODY_CHARS = 700
CHARS_PER_GAP = 2600
"""Of a file; larger files have more gaps, up to GAPS_PER_FILE."""
GAPS_PER_FILE = 20
CHARS_PER_SNIPPET = 3600
COPIED = 0.3
"""The share of a file's longer lines that make it the copy of a held-out file."""

_TOKEN = re.compile(r"\w+|[^\w\s]|\s+")
_HEADER = re.compile(r"[ \t]*(?:async )?def \w")
_OPENING = re.compile(r"[ \t]*((?:async )?def|class) \w")
_CLOSER = {"(": ")", "[": "]", "{": "}"}

Span = tuple[int, int]


@dataclass(frozen=True)
class Gap:
    """A gap in a text, and the part of the text that is shown with it.

    Attributes:
        text: the whole text.
        start: where the gap begins.
        stop: where it ends.
        first: where its prefix begins.
        last: where its suffix ends.
    """

    text: str
    start: int
    stop: int
    first: int
    last: int

    @property
    def prefix(self) -> str:
        """What is shown before the gap."""
        return self.text[self.first : self.start]

    @property
    def middle(self) -> str:
        """What was in the gap."""
        return self.text[self.start : self.stop]

    @property
    def suffix(self) -> str:
        """What is shown behind the gap."""
        return self.text[self.stop : self.last]

    def filled(self, answer: str) -> str:
        """The whole text with ``answer`` in the gap."""
        return self.text[: self.start] + answer + self.text[self.stop :]

    def record(self) -> dict[str, str]:
        """What ``prepare`` reads."""
        return {"prefix": self.prefix, "middle": self.middle, "suffix": self.suffix}


class GapMaker:
    """Draws gaps; the same seed and texts draw the same ones."""

    def __init__(self, seed: int | str) -> None:
        self.dice = random.Random(seed)

    def draw(self, code: Code) -> Gap | None:
        """A gap of any kind with any surroundings, or None where none came out."""
        kinds: tuple[tuple[float, Callable[[Code], Span | None]], ...] = (
            (0.28, self.rest_of_line), (0.22, self.within_line), (0.14, self.one_line),
            (0.16, self.lines), (0.12, self.body), (0.08, self.anywhere),
        )  # fmt: skip
        if not code.code:
            return None
        make = self.dice.choices([kind for _, kind in kinds], [share for share, _ in kinds])[0]
        span = make(code)
        if span is None or not code.text[span[0] : span[1]].strip():
            return None
        return self._shown(code, *span, may_end_there=make not in (self.within_line, self.lines))

    def rest_of_line(self, code: Code) -> Span | None:
        """From between two words of a line to its end."""
        _, words, stop = code.bounds(self.dice.choice(code.code))
        if self.dice.random() < 0.12:
            return self.dice.randrange(words, stop), stop
        places = _places(code.text, words, stop)[:-1]
        return self.dice.choice(places), stop

    def within_line(self, code: Code) -> Span | None:
        """What is between two brackets, or a few words within a line."""
        _, words, stop = code.bounds(self.dice.choice(code.code))
        pairs = list(_brackets(code.text, words, stop))
        if pairs and self.dice.random() < 0.5:
            return self.dice.choice(pairs)
        places = _places(code.text, words, stop)
        first = self.dice.randrange(len(places) - 1)
        last = min(first + self.dice.randint(1, 7), len(places) - 1)
        return places[first], places[last]

    def one_line(self, code: Code) -> Span:
        """All words of a line."""
        return self._whole(code, (number := self.dice.choice(code.code)), number)

    def lines(self, code: Code) -> Span:
        """Two lines or more of one block."""
        first = self.dice.choice(code.code)
        count = self.dice.choices(range(2, LINES + 1), [8, 6, 5, 4, 3, 2, 1])[0]
        return self._whole(code, first, code.block_end(first, code.indent(first), count))

    def body(self, code: Code) -> Span | None:
        """The body of a function, with its docstring or without."""
        headers = [number for number in code.code if _HEADER.match(code.lines[number])]
        if not headers:
            return None
        header = first = self.dice.choice(headers)
        while first < len(code.lines) and not code.lines[first].rstrip().endswith(":"):
            first += 1
        first = _next_words(code, first + 1)
        if self.dice.random() < 0.85:
            first = _behind_docstring(code, first)
        if first >= len(code.lines) or code.indent(first) <= code.indent(header):
            return None
        last = code.block_end(first, code.indent(header) + 1, BODY_LINES + 1)
        start, stop = self._whole(code, first, last)
        if last - first >= BODY_LINES or stop - start > BODY_CHARS:
            return None
        return start, stop

    def anywhere(self, code: Code) -> Span | None:
        """Any characters, mostly few."""
        start = self.dice.randrange(len(code.text))
        size = int(math.exp(self.dice.uniform(0, math.log(300))))
        return start, min(len(code.text), start + size)

    def _whole(self, code: Code, first: int, last: int) -> Span:
        """Whole lines; the cursor mostly stands where the first one's words begin."""
        start, words, _ = code.bounds(first)
        stop = code.bounds(last)[2]
        place = self.dice.random()
        if place < 0.75:
            return words, stop
        if place < 0.9 or start == 0:
            return start, stop
        return start - 1, stop

    def _shown(self, code: Code, start: int, stop: int, *, may_end_there: bool) -> Gap:
        first = self._first(code, start)
        last = self._last(code.text, stop, may_end_there)
        return Gap(code.text, start, stop, first, last)

    def _first(self, code: Code, start: int) -> int:
        """Where the prefix begins."""
        text, kind = code.text, self.dice.random()
        if kind < 0.3:
            opening = _opening_before(code, start)
            if opening is not None and start - opening <= SHOWN:
                return opening
        size = int(math.exp(self.dice.uniform(math.log(12), math.log(SHOWN))))
        if kind > 0.85:
            size = SHOWN
        if start <= size:
            return 0
        if kind > 0.93:
            return start - size
        line = text.find("\n", start - size, start) + 1
        return line or text.rfind("\n", 0, start) + 1

    def _last(self, text: str, stop: int, may_end_there: bool) -> int:
        """Where the suffix ends."""
        kind = self.dice.random()
        line_end = text.find("\n", stop)
        line_end = len(text) if line_end < 0 else line_end
        if kind < 0.28 and may_end_there:
            return self.dice.choice((stop, min(stop + 1, len(text)), line_end))
        size = int(math.exp(self.dice.uniform(math.log(8), math.log(SHOWN))))
        if kind > 0.9:
            size = SHOWN
        if kind > 0.96:
            return min(len(text), stop + size)
        line = text.find("\n", min(len(text), max(line_end + 1, stop + size)))
        line = len(text) if line < 0 else line
        if line - stop > SHOWN:
            line = max(line_end, text.rfind("\n", stop, stop + SHOWN))
        return line + (self.dice.random() < 0.5 and line < len(text))


def _places(text: str, start: int, stop: int) -> list[int]:
    """The bounds of the words and marks between two places, both included."""
    return [start + found.start() for found in _TOKEN.finditer(text[start:stop])] + [stop]


def _brackets(text: str, start: int, stop: int) -> Iterator[Span]:
    """What is between the pairs of brackets of a line."""
    open_ones: list[int] = []
    for place in range(start, stop):
        if text[place] in _CLOSER:
            open_ones.append(place)
        elif text[place] in _CLOSER.values() and open_ones:
            begin = open_ones.pop()
            if _CLOSER[text[begin]] == text[place] and place > begin + 1:
                yield begin + 1, place


def _next_words(code: Code, number: int) -> int:
    while number < len(code.lines) and not code.lines[number].strip():
        number += 1
    return number


def _behind_docstring(code: Code, number: int) -> int:
    """The first line with words behind the docstring that may begin in line ``number``."""
    line = code.lines[number].strip() if number < len(code.lines) else ""
    if not line.startswith('"""'):
        return number
    if line.count('"""') < 2:
        number += 1
        while number < len(code.lines) and '"""' not in code.lines[number]:
            number += 1
    return _next_words(code, number + 1)


def _opening_before(code: Code, start: int) -> int | None:
    """Where the words of the nearest ``def`` or ``class`` at or before a place begin."""
    low, high = 0, len(code.lines)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if code.starts[middle] < start else (low, middle)
    for number in range(low - 1, max(-1, low - SNIPPET_LINES), -1):
        if _OPENING.match(code.lines[number]):
            words = code.bounds(number)[1]
            return words if words <= start else None
    return None


def long_lines(text: str) -> set[int]:
    """Hashes of the lines that are long enough to say something."""
    return {hash(line) for line in map(str.strip, text.splitlines()) if len(line) >= 30}


def is_copy(text: str, known: set[int]) -> bool:
    """Whether much of a text is among ``known`` lines."""
    lines = long_lines(text)
    return len(lines & known) > COPIED * max(1, len(lines))


def gaps_of(corpus: Path, split: str, *, seed: int = 0) -> Iterator[Gap]:
    """All gaps of one split: of files, of their functions and classes alone, and of the basics.

    A training file that is mostly the copy of a held-out one has none.
    """
    known: set[int] = set()
    if split == "train":
        for text in texts_of(corpus / "validation" / "code.jsonl"):
            known |= long_lines(text)
    for text in texts_of(corpus / split / "code.jsonl"):
        if is_copy(text, known) or (code := code_of(text)) is None:
            continue
        maker = GapMaker(f"{seed} {hashlib.sha256(text.encode()).hexdigest()}")
        count = min(GAPS_PER_FILE, math.ceil(len(text) / CHARS_PER_GAP))
        yield from _several(maker, code, count)
        snippets = snippets_of(code)
        count = min(len(snippets), math.ceil(len(text) / CHARS_PER_SNIPPET), GAPS_PER_FILE)
        for snippet in maker.dice.sample(snippets, count):
            if (alone := code_of(snippet)) is not None:
                yield from _several(maker, alone, 1)
    if split == "train":
        maker = GapMaker(f"{seed} basics")
        for _ in range(40):
            for text in basic_snippets(maker.dice):
                if (code := code_of(text)) is not None:
                    yield from _several(maker, code, 1)


def _several(maker: GapMaker, code: Code, count: int) -> Iterator[Gap]:
    for _ in range(count):
        gap = maker.draw(code)
        if gap is not None and len(gap.prefix + gap.suffix) > 0:
            yield gap


def write_gaps(corpus: Path, split: str, path: Path) -> int:
    """Write JSONL and return the number of gaps."""
    count = 0
    with path.open("w", encoding="utf-8") as lines:
        for gap in gaps_of(corpus, split):
            lines.write(json.dumps(gap.record(), ensure_ascii=False) + "\n")
            count += 1
    return count
