"""Token shards on disk: what ``dsv2 prepare`` writes and training maps into memory.

A folder holds ``tokens-*.bin`` (uint16, or uint32 for vocabularies above 65,536), for SFT also
``mask-*.bin`` (uint8, 1 where the loss counts), ``documents.bin`` (int64 ends of the documents in
the whole stream) and ``manifest.json`` with sizes, digests and the fingerprint of it all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

MANIFEST = "manifest.json"
DOCUMENTS = "documents.bin"
VERSION = 1
SHARD_TOKENS = 1 << 26
_PAGE = 1 << 20
_PAGES = 256


class DataError(ValueError):
    """Token shards are missing, damaged or not what they say they are."""


def digest(path: Path) -> str:
    """SHA-256 of a file's size and pages: every page up to 256 MiB, 256 evenly spread beyond."""
    size = path.stat().st_size
    found = hashlib.sha256(str(size).encode())
    pages = -(-size // _PAGE)
    chosen = range(pages) if pages <= _PAGES else np.linspace(0, pages - 1, _PAGES).astype(int)
    with path.open("rb") as file:
        for page in chosen:
            file.seek(int(page) * _PAGE)
            found.update(file.read(_PAGE))
    return found.hexdigest()


class ShardWriter:
    """Appends documents to a folder of shards, as a context manager that makes it readable.

    After an error the folder has no manifest, and so is no data set.
    """

    def __init__(
        self, folder: Path, vocab_size: int, *, masked: bool, shard_tokens: int = SHARD_TOKENS
    ) -> None:
        self.folder, self.vocab_size = folder, vocab_size
        self.tokens = 0
        self.documents = 0
        self.text_bytes = 0
        self._shard_tokens = shard_tokens
        self._dtype = np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")
        self._shards: list[dict[str, Any]] = []
        self._masked = masked
        self._files: list[IO[bytes]] = []
        folder.mkdir(parents=True)
        self._ends: IO[bytes] = (folder / DOCUMENTS).open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._finish()
        else:
            for file in (*self._files, self._ends):
                file.close()

    def add(self, ids: Sequence[int], mask: Sequence[bool] | None, text_bytes: int) -> None:
        """Append one document.

        Args:
            ids: its tokens, at least one.
            mask: for each token whether the loss counts it; given exactly when ``masked``.
            text_bytes: UTF-8 bytes of the text that the tokens stand for.
        """
        if (mask is not None) != self._masked:
            raise DataError(f"masked is {self._masked}, mask given: {mask is not None}")
        if not ids:
            raise DataError("a document has no tokens, allowed is at least one")
        if not self._files or self._shards[-1]["tokens"] >= self._shard_tokens:
            self._open_shard()
        self._files[0].write(np.asarray(ids, dtype=self._dtype).tobytes())
        if mask is not None:
            self._files[1].write(np.asarray(mask, dtype=np.uint8).tobytes())
        self._shards[-1]["tokens"] += len(ids)
        self.tokens += len(ids)
        self.documents += 1
        self.text_bytes += text_bytes
        self._ends.write(np.int64(self.tokens).tobytes())

    def _open_shard(self) -> None:
        self._close_shard()
        number = len(self._shards)
        names = [f"tokens-{number:05d}.bin"] + [f"mask-{number:05d}.bin"] * self._masked
        self._files = [(self.folder / name).open("wb") for name in names]
        self._shards.append({"tokens": 0, "files": dict.fromkeys(names, "")})

    def _close_shard(self) -> None:
        for file in self._files:
            file.close()
        if self._shards:
            files = self._shards[-1]["files"]
            for name in files:
                files[name] = digest(self.folder / name)

    def _finish(self) -> None:
        self._close_shard()
        self._ends.close()
        manifest: dict[str, Any] = {
            "version": VERSION,
            "vocab_size": self.vocab_size,
            "dtype": self._dtype.str,
            "masked": self._masked,
            "tokens": self.tokens,
            "documents": self.documents,
            "text_bytes": self.text_bytes,
            "shards": self._shards,
            "documents_file": digest(self.folder / DOCUMENTS),
        }
        manifest["fingerprint"] = _fingerprint(manifest)
        (self.folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")


def _fingerprint(manifest: dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "fingerprint"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


class TokenDataset:
    """A folder of shards, mapped into memory.

    Attributes:
        fingerprint: 16 hex digits that change with any token of the data.
        vocab_size: every token is below it.
        masked: whether there is a loss mask.
        ends: ``[documents]`` int64, where each document ends in the stream.
        text_bytes: UTF-8 bytes of all documents' text.

    Raises:
        DataError: naming the file, and what is wrong with it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = _read_manifest(folder / MANIFEST)
        self.vocab_size = int(manifest["vocab_size"])
        self.masked = bool(manifest["masked"])
        self.text_bytes = int(manifest["text_bytes"])
        dtype = np.dtype(manifest["dtype"])
        self._tokens: list[NDArray[Any]] = []
        self._masks: list[NDArray[Any]] = []
        self._names: list[str] = []
        for shard in manifest["shards"]:
            for name, expected in shard["files"].items():
                is_mask = name.startswith("mask-")
                kind = np.dtype(np.uint8) if is_mask else dtype
                path = folder / Path(name).name
                array = _map(path, kind, int(shard["tokens"]), expected)
                (self._masks if is_mask else self._tokens).append(array)
                if not is_mask:
                    self._names.append(name)
        self._starts = np.cumsum([0, *(len(part) for part in self._tokens)])
        self.ends = _map(
            folder / DOCUMENTS, np.dtype("<i8"), manifest["documents"], manifest["documents_file"]
        )
        total = int(self.ends[-1]) if len(self.ends) else 0
        if total != self.num_tokens or bool((np.diff(self.ends, prepend=0) <= 0).any()):
            raise DataError(f"{folder / DOCUMENTS}: its documents do not cover the tokens")
        self.fingerprint = str(manifest["fingerprint"])

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self._starts[-1])

    @property
    def num_documents(self) -> int:
        """Documents, each at least one token."""
        return len(self.ends)

    def bounds(self, document: int) -> tuple[int, int]:
        """Where a document begins and ends in the stream."""
        return int(self.ends[document - 1]) if document else 0, int(self.ends[document])

    def read(self, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Tokens int64 and mask bool (None without one) of a part of one document.

        Raises:
            DataError: a token is not below ``vocab_size``, naming the file and its place there.
        """
        # A shard ends with a document, so a part of a document lies within one shard.
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        first, last = start - int(self._starts[shard]), stop - int(self._starts[shard])
        tokens = self._tokens[shard][first:last].astype(np.int64)
        if len(tokens) and int(tokens.max()) >= self.vocab_size:
            place = int(np.argmax(tokens >= self.vocab_size))
            raise DataError(
                f"{self.folder / self._names[shard]}: token {int(tokens[place])} at place "
                f"{first + place} is not below vocab_size {self.vocab_size}"
            )
        mask = self._masks[shard][first:last].astype(bool) if self.masked else None
        return tokens, mask


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: not there; dsv2 prepare writes it") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        raise DataError(f"{path}: must be a manifest of version {VERSION}")
    if manifest.get("fingerprint") != _fingerprint(manifest):
        raise DataError(f"{path}: the fingerprint is not that of its content")
    return manifest


def _map(path: Path, dtype: np.dtype[Any], count: int, expected: str) -> NDArray[Any]:
    size = path.stat().st_size if path.is_file() else -1
    if size != count * dtype.itemsize:
        found = "is not there" if size < 0 else f"has {size} bytes"
        raise DataError(f"{path}: {found}, the manifest says {count * dtype.itemsize} bytes")
    if digest(path) != expected:
        raise DataError(f"{path}: its content is not what the manifest says")
    if count == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")
