"""Checking a ``tokenizer.json`` from elsewhere before any of it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 64 << 20
MAX_TOKENS = 1 << 22


class TokenizerError(ValueError):
    """A tokenizer file is malformed, or a text cannot be encoded."""


LETTERS = (
    r"\s?"
    "["
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"
    "\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
    "]+"
)
"""A run of letters of the cased scripts with the blank before it; escaped, since several of these
characters change under Unicode normalisation."""
PUNCTUATION = r"\s?" "[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
IDEOGRAPHS = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
PATTERNS = (r"[\r\n]", LETTERS, PUNCTUATION, r"\s+$", IDEOGRAPHS)
"""The published tokenizer's cuts, in its order; digits are then cut one by one."""

_SAFE_PATTERNS = frozenset(PATTERNS) | {r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", r"\d", r"[0-9]"}


def read_definition(path: Path) -> dict[str, Any]:
    """Read ``path`` and check all that the library would trust.

    Raises:
        TokenizerError: naming the file, the part and what is allowed.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise TokenizerError(f"{path}: {size} bytes, allowed are {MAX_BYTES}")
        definition = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"{path}: not valid JSON: {error}") from error
    try:
        check_definition(definition)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error
    return definition


def check_definition(definition: Any) -> None:
    """Check the content of a tokenizer file, see :func:`read_definition`."""
    if not isinstance(definition, dict) or not isinstance(definition.get("model"), dict):
        raise TokenizerError("must be an object with a model")
    model = definition["model"]
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(f"model.type is {model['type']!r}, allowed is 'BPE'")
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not 0 < len(vocabulary) <= MAX_TOKENS:
        raise TokenizerError(f"model.vocab must be an object of 1 to {MAX_TOKENS} tokens")
    owners: dict[int, str] = {}
    for token, number in vocabulary.items():
        _claim(owners, number, token, "model.vocab")
    _check_merges(model.get("merges"), vocabulary)
    added = definition.get("added_tokens") or []
    if not isinstance(added, list):
        raise TokenizerError("added_tokens must be a list")
    for entry in added:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise TokenizerError(f"added_tokens has {str(entry)[:80]}, which has no content")
        if not entry["content"]:
            raise TokenizerError("added_tokens has an empty content")
        if vocabulary.get(entry["content"]) == entry.get("id"):
            continue
        _claim(owners, entry.get("id"), entry["content"], "added_tokens")
    _check_steps(definition.get("pre_tokenizer"), "pre_tokenizer")
    normalizer = definition.get("normalizer")
    if normalizer is not None and normalizer != {"type": "Sequence", "normalizers": []}:
        raise TokenizerError(f"normalizer is {str(normalizer)[:80]}, allowed is none")
    decoder = definition.get("decoder")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        raise TokenizerError(f"decoder is {str(decoder)[:80]}, allowed is ByteLevel")


def _claim(owners: dict[int, str], number: Any, token: str, part: str) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < MAX_TOKENS:
        raise TokenizerError(f"{part}: {token[:40]!r} has id {number!r}, allowed 0 to {MAX_TOKENS}")
    if number in owners:
        raise TokenizerError(
            f"{part}: {token[:40]!r} and {owners[number][:40]!r} share id {number}"
        )
    owners[number] = token


def _check_merges(merges: Any, vocabulary: dict[str, int]) -> None:
    if not isinstance(merges, list) or len(merges) > MAX_TOKENS:
        raise TokenizerError("model.merges must be a list")
    for place, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2:
            raise TokenizerError(f"model.merges[{place}] is {str(merge)[:80]}, allowed is a pair")
        left, right = pair
        if not isinstance(left, str) or not isinstance(right, str):
            raise TokenizerError(f"model.merges[{place}] is {str(merge)[:80]}, allowed is a pair")
        whole = left + right
        if left in vocabulary and right in vocabulary and whole in vocabulary:
            continue
        for token in (left, right, whole):
            if token not in vocabulary:
                raise TokenizerError(
                    f"model.merges[{place}]: {token[:40]!r} is not in the vocabulary"
                )


def _check_steps(step: Any, part: str) -> None:
    """Pre-tokenizers of known kinds, with patterns of a known list: a regex can hang."""
    kind = step.get("type") if isinstance(step, dict) else None
    if kind == "Sequence":
        for inner in step.get("pretokenizers", []):
            _check_steps(inner, part)
    elif kind == "Split":
        pattern = step.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        if regex not in _SAFE_PATTERNS:
            raise TokenizerError(
                f"{part}: pattern {str(pattern)[:80]!r} is unknown; allowed are the published ones"
            )
    elif kind not in ("Digits", "ByteLevel"):
        raise TokenizerError(
            f"{part}: {str(step)[:80]} is unknown; allowed are Sequence, Split, Digits, ByteLevel"
        )
