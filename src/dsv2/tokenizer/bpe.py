"""Byte-level BPE from a published ``tokenizer.json``, with control tokens kept out of text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from dsv2.tokenizer import special
from dsv2.tokenizer.definition import TokenizerError, read_definition

FILES = ("tokenizer.json", "tokenizer_config.json")
_MAX_SETTINGS_BYTES = 4 << 20


class Tokenizer:
    """A vocabulary with its merges and control tokens.

    Text is encoded by a backend that does not know the control tokens at all, so no text, however
    it is cut, can yield one.
    """

    def __init__(self, definition: dict[str, Any], settings: dict[str, Any]) -> None:
        self._definition, self._settings = definition, settings
        added = {entry["content"]: entry["id"] for entry in definition.get("added_tokens") or []}
        self.special_ids: Mapping[str, int] = added
        plain = definition | {"added_tokens": [], "post_processor": None}
        self._plain = Backend.from_str(json.dumps(plain))
        self.bos_id = self._control("bos_token", special.BOS)
        self.eos_id = self._control("eos_token", special.EOS)

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read ``tokenizer.json`` and, where it is there, ``tokenizer_config.json``.

        Raises:
            TokenizerError: a file is missing, too large, malformed or has an unknown pattern.
        """
        definition = read_definition(folder / FILES[0])
        path = folder / FILES[1]
        settings: Any = {}
        if path.exists():
            if path.stat().st_size > _MAX_SETTINGS_BYTES:
                raise TokenizerError(f"{path}: more than {_MAX_SETTINGS_BYTES} bytes")
            try:
                settings = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise TokenizerError(f"{path}: not valid JSON: {error}") from error
            if not isinstance(settings, dict):
                raise TokenizerError(f"{path}: must be an object")
        return cls(definition, settings)

    def _control(self, setting: str, usual: str) -> int:
        value = self._settings.get(setting, usual)
        name = value.get("content") if isinstance(value, dict) else value
        if not isinstance(name, str) or name not in self.special_ids:
            raise TokenizerError(f"{setting} {name!r} is not among the added tokens")
        return self.special_ids[name]

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(max(self._definition["model"]["vocab"].values()), *self.special_ids.values()) + 1

    @property
    def chat_format_name(self) -> str:
        """``v2.5`` when the stored template speaks of its role tokens, else ``v2``."""
        template = self._settings.get("chat_template")
        return "v2.5" if isinstance(template, str) and special.USER in template else "v2"

    @cached_property
    def _parsing(self) -> Backend:
        # The one that knows control tokens: few programs ask for it, and a large vocabulary takes
        # half a second.
        return Backend.from_str(json.dumps(self._definition | {"post_processor": None}))

    def files(self) -> dict[str, bytes]:
        """The tokenizer's files by name, to be stored beside a checkpoint."""
        contents = (self._definition, self._settings)
        return {
            name: (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()
            for name, content in zip(FILES, contents, strict=True)
        }

    def encode(self, text: str) -> list[int]:
        """The tokens of plain text; what looks like a control token in it is text too.

        Raises:
            TokenizerError: the text holds a lone surrogate, which is no character.
        """
        return self._encode(self._plain, text)

    def encode_with_specials(self, text: str) -> list[int]:
        """The tokens of text whose control tokens are meant; never for text from a user."""
        return self._encode(self._parsing, text)

    @staticmethod
    def _encode(backend: Backend, text: str) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"text has a lone surrogate U+{ord(text[error.start]):04X} "
                f"at character {error.start}"
            ) from error
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        return ids

    def control(self, name: str) -> int:
        """The id of a control token by its text.

        Raises:
            TokenizerError: this tokenizer has no such token.
        """
        if name not in self.special_ids:
            raise TokenizerError(f"this tokenizer has no token {name}")
        return self.special_ids[name]

    @cached_property
    def _tokens(self) -> list[str]:
        table = [""] * self.vocab_size
        for token, number in self._definition["model"]["vocab"].items():
            table[number] = token
        return table

    @cached_property
    def _bytes(self) -> list[bytes | None]:
        """By id, as far as they have been asked for: a program may need few of 100,000."""
        table: list[bytes | None] = [None] * self.vocab_size
        for token, number in self.special_ids.items():
            table[number] = token.encode("utf-8")
        return table

    @cached_property
    def _special_numbers(self) -> frozenset[int]:
        return frozenset(self.special_ids.values())

    def is_special(self, number: int) -> bool:
        """Whether ``number`` is a control token."""
        return number in self._special_numbers

    def token_bytes(self, number: int) -> bytes:
        """The bytes of a token; none for a padding id that has no token."""
        if not 0 <= number < len(self._bytes):
            return b""
        found = self._bytes[number]
        if found is None:
            found = self._bytes[number] = _bytes_of(self._tokens[number])
        return found

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of tokens; bytes that are no UTF-8 become U+FFFD."""
        found = self.bytes_of(ids, skip_special_tokens=skip_special_tokens)
        return found.decode("utf-8", errors="replace")

    def bytes_of(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> bytes:
        """The bytes of tokens one after the other."""
        silent = self._special_numbers if skip_special_tokens else ()
        return b"".join([self.token_bytes(number) for number in ids if number not in silent])


def _bytes_of(token: str) -> bytes:
    letters = _byte_letters()
    if all(letter in letters for letter in token):
        return bytes(letters[letter] for letter in token)
    return token.encode("utf-8")  # a control token that the vocabulary lists as well


@cache
def _byte_letters() -> dict[str, int]:
    """GPT-2's printable stand-ins of the 256 bytes, the letters of byte-level vocabularies."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}
