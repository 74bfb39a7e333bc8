"""What is left out of training data, each reason by its name."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]

_WORDS = re.compile(r"\w+|[^\w\s]")
_SHINGLE = 5


class FilterConfig(BaseModel):
    """Bounds that a document must keep; None or 0 turns one off.

    Attributes:
        min_chars: shortest document.
        max_chars: longest document.
        languages: ISO 639-1 codes that prose may be in, judged by py3langid; empty for all.
        max_line_chars: longest mean line, against minified code and tables.
        max_repeated_lines: largest share of non-empty lines that occur more than once.
        min_letters: smallest share of letters, digits and spaces among the characters.
        near_duplicate: Jaccard similarity of 5-word shingles above which a document is the
            near-duplicate of an earlier one (MinHash with 128 permutations); 0 for off.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_chars: Annotated[int, Field(ge=0)] = 1
    max_chars: Annotated[int, Field(ge=1)] | None = None
    languages: tuple[str, ...] = ()
    max_line_chars: Annotated[int, Field(ge=1)] | None = None
    max_repeated_lines: Share | None = None
    min_letters: Share | None = None
    near_duplicate: Share = 0.0


def quality_problem(text: str, config: FilterConfig) -> str | None:
    """The name of the first bound that ``text`` breaks, or None."""
    if len(text) < max(config.min_chars, 1) or not text.strip():
        return "too_short"
    if config.max_chars is not None and len(text) > config.max_chars:
        return "too_long"
    lines = [line for line in text.splitlines() if line.strip()]
    if config.max_line_chars is not None and len(text) / len(lines) > config.max_line_chars:
        return "long_lines"
    if config.max_repeated_lines is not None:
        repeated = len(lines) - len(set(lines))
        if repeated / len(lines) > config.max_repeated_lines:
            return "repeated_lines"
    if config.min_letters is not None:
        plain = sum(character.isalnum() or character.isspace() for character in text)
        if plain / len(text) < config.min_letters:
            return "few_letters"
    if config.languages and _language(text) not in config.languages:
        return "language"
    return None


def _language(text: str) -> str:
    from py3langid import langid

    found: tuple[str, float] = langid.classify(text[:4000])
    return found[0]


def check_available(config: FilterConfig) -> None:
    """Raise ValueError when a filter is asked for whose library is not installed."""
    needed = [("languages", "py3langid", bool(config.languages))]
    needed.append(("near_duplicate", "datasketch", config.near_duplicate > 0))
    for field, package, wanted in needed:
        if wanted and importlib.util.find_spec(package) is None:
            raise ValueError(f"{field} needs {package}: pip install 'dsv2[train]'")


class Duplicates:
    """Remembers documents and knows the ones that it has seen, exactly or nearly."""

    def __init__(self, near: float) -> None:
        self._seen: set[bytes] = set()
        self._index: Any = None
        if near:
            from datasketch import MinHashLSH

            self._index = MinHashLSH(threshold=near, num_perm=128)
        self._near = near
        self._sketches: dict[bytes, Any] = {}

    def problem(self, text: str) -> str | None:
        """``exact_duplicate``, ``near_duplicate`` or None, in which case it is remembered."""
        key = hashlib.sha256(" ".join(text.split()).encode()).digest()
        if key in self._seen:
            return "exact_duplicate"
        if self._index is not None:
            sketch = _sketch(text)
            # The index proposes by bands; the estimate itself decides.
            for other in self._index.query(sketch):
                if sketch.jaccard(self._sketches[other]) >= self._near:
                    return "near_duplicate"
            self._sketches[key] = sketch
            self._index.insert(key, sketch)
        self._seen.add(key)
        return None


def _sketch(text: str) -> Any:
    from datasketch import MinHash

    words: Sequence[str] = _WORDS.findall(text)
    shingles = {
        " ".join(words[start : start + _SHINGLE])
        for start in range(max(1, len(words) - _SHINGLE + 1))
    }
    sketch = MinHash(num_perm=128)
    sketch.update_batch([shingle.encode() for shingle in sorted(shingles)])
    return sketch
