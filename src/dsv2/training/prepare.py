"""From text files to token shards: filter, deduplicate, split, fill in the middle, tokenise."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dsv2.tokenizer import ChatError, ChatFormat, Tokenizer, TokenizerError, chat_format
from dsv2.training.documents import Document, Malformed, SourceError, read_documents
from dsv2.training.filters import Duplicates, FilterConfig, Share, check_available, quality_problem
from dsv2.training.shards import ShardWriter

REPORT = "report.json"
SPLITS = ("train", "validation")


class Source(BaseModel):
    """A file or folder and its weight in the mixture.

    Attributes:
        path: text or JSONL, or a folder of them.
        weight: how often each training document is taken: 2.5 is twice, and half of them a third
            time.
        split: where its documents go; ``auto`` decides by hash.
        fim_rate: the share turned to prefix, suffix, middle; None for the configuration's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    weight: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = 1.0
    split: Literal["auto", "train", "validation"] = "auto"
    fim_rate: Share | None = None


class PrepareConfig(BaseModel):
    """How documents become tokens.

    Attributes:
        sources: where the documents are.
        tokenizer: folder of the tokenizer.
        stage: ``pretrain`` takes text, ``sft`` conversations, whose mask marks the assistant, and
            gaps in texts, whose mask marks the middle.
        filters: what is left out.
        validation: share of the documents that is held out, chosen by the hash of their text.
        split_chars: longer texts are cut at line ends into documents of at most so many
            characters; None cuts nothing.
        fim_rate: share of training documents turned to prefix, suffix, middle.
        max_tokens: conversations and gaps with more are left out; None for no bound.
        chat: chat format of conversations.
        malformed: whether a line that cannot be read stops the work or is counted.
        seed: of FIM cuts and fractional weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    tokenizer: Path
    stage: Literal["pretrain", "sft"] = "pretrain"
    filters: FilterConfig = FilterConfig()
    validation: Share = 0.0
    split_chars: Annotated[int, Field(ge=64)] | None = None
    fim_rate: Share = 0.0
    max_tokens: Annotated[int, Field(ge=8)] | None = None
    chat: str | None = None
    malformed: Literal["stop", "skip"] = "stop"
    seed: int = 0


@dataclass
class SourceReport:
    """What became of one source's documents.

    Attributes:
        read: documents read.
        kept: documents that came through.
        dropped: documents left out, by reason.
        examples: for each reason the places of the first few.
        tokens: tokens written, by split.
    """

    path: str
    weight: float
    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    tokens: Counter[str] = field(default_factory=Counter)

    def drop(self, reason: str, place: str) -> None:
        """Count a document that is left out."""
        self.dropped[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < 5:
            shown.append(place)


@dataclass(frozen=True)
class Piece:
    """A tokenised document: ids, the loss mask of the stage ``sft``, and bytes of text."""

    ids: list[int]
    mask: list[bool] | None
    text_bytes: int


def prepare(
    config: PrepareConfig,
    out: Path,
    *,
    overwrite: bool = False,
) -> list[SourceReport]:
    """Write ``out/train`` and, where documents are held out, ``out/validation``, and a report.

    The folder appears whole or not at all.

    Raises:
        SourceError: a source is missing or malformed, ``out`` exists, or nothing came through.
    """
    check_available(config.filters)
    if out.exists() and not overwrite:
        raise SourceError(f"{out}: exists; allowed is a new folder, or --overwrite")
    tokenizer = Tokenizer.from_folder(config.tokenizer)
    building = out.with_name(f".{out.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        reports = _build(config, tokenizer, building)
        content = {
            "config": config.model_dump(mode="json"),
            "sources": [vars(report) for report in reports],
        }
        (building / REPORT).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        building.rename(out)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return reports


def _build(
    config: PrepareConfig,
    tokenizer: Tokenizer,
    folder: Path,
) -> list[SourceReport]:
    sft = config.stage == "sft"
    name = tokenizer.chat_format_name if config.chat is None else config.chat
    chat = chat_format(name, tokenizer)
    duplicates = Duplicates(config.filters.near_duplicate)
    reports = []
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                ShardWriter(folder / split, tokenizer.vocab_size, masked=sft)
            )
            for split in SPLITS
        }
        for source in config.sources:
            report = SourceReport(str(source.path), source.weight)
            reports.append(report)
            for document in read_documents(source.path, conversations=sft):
                if (kept := _examine(document, config, duplicates, report)) is not None:
                    _write(kept, source, config, tokenizer, chat, writers, report)
    for split, writer in writers.items():
        if writer.documents == 0:
            if split == "train":
                dropped = sum((report.dropped for report in reports), Counter[str]())
                raise SourceError(f"no document came through; dropped: {dict(dropped)}")
            shutil.rmtree(folder / split)
    return reports


def _examine(
    document: Document | Malformed,
    config: PrepareConfig,
    duplicates: Duplicates,
    report: SourceReport,
) -> Document | None:
    """The document, or None when a filter drops it."""
    report.read += 1
    if isinstance(document, Malformed):
        if config.malformed == "stop":
            raise SourceError(f"{document.place}: {document.problem}")
        report.drop("malformed", document.place)
        return None
    reason = quality_problem(document.text, config.filters) or duplicates.problem(document.text)
    if reason is not None:
        report.drop(reason, document.place)
        return None
    return document


def _write(
    document: Document,
    source: Source,
    config: PrepareConfig,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    writers: dict[str, ShardWriter],
    report: SourceReport,
) -> None:
    split = source.split
    if split == "auto":
        split = "validation" if held_out(document.text, config.validation) else "train"
    dice = random.Random(f"{config.seed} {hashlib.sha256(document.text.encode()).hexdigest()}")
    copies = 1
    if split == "train":
        copies = int(source.weight) + (dice.random() < source.weight % 1)
    fim_rate = config.fim_rate if source.fim_rate is None else source.fim_rate
    rate = fim_rate if split == "train" else 0.0
    for copy in range(copies):
        try:
            pieces = list(_pieces(document, config, tokenizer, chat, dice, rate))
        except (ChatError, TokenizerError) as error:
            if config.malformed == "stop":
                raise SourceError(f"{document.place}: {error}") from error
            report.drop("malformed", document.place)
            return
        if not pieces:
            report.drop("too_many_tokens", document.place)
            return
        report.kept += copy == 0
        for piece in pieces:
            writers[split].add(piece.ids, piece.mask, piece.text_bytes)
            report.tokens[split] += len(piece.ids)
    if copies == 0:
        report.drop("weight", document.place)


def held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the validation split: a function of its hash alone."""
    number = int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big")
    return number < share * 2**64


def _pieces(
    document: Document,
    config: PrepareConfig,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    dice: random.Random,
    fim_rate: float,
) -> Iterator[Piece]:
    if document.messages is not None:
        rendered = chat.render(document.messages, tools=document.tools, add_generation_prompt=False)
        if not any(rendered.loss_mask):
            raise ChatError("the assistant says nothing, so there is nothing to learn")
        if config.max_tokens is None or len(rendered.ids) <= config.max_tokens:
            yield Piece(rendered.ids, rendered.loss_mask, _message_bytes(document.messages))
        return
    if document.gap is not None:
        gap = document.gap
        shown = chat.fim(gap.prefix, gap.suffix)
        learned = [*tokenizer.encode(gap.middle), tokenizer.eos_id]
        size = len(shown) + len(learned)
        if config.max_tokens is None or size <= config.max_tokens:
            mask = [False] * len(shown) + [True] * len(learned)
            text_bytes = len((gap.prefix + gap.middle + gap.suffix).encode())
            yield Piece([*shown, *learned], mask, text_bytes)
        return
    for text in split_text(document.text, config.split_chars):
        if fim_rate and dice.random() < fim_rate:
            first, second = sorted(dice.randint(0, len(text)) for _ in range(2))
            ids = chat.fim(text[:first], text[second:]) + tokenizer.encode(text[first:second])
        else:
            ids = [tokenizer.bos_id, *tokenizer.encode(text)]
        yield Piece([*ids, tokenizer.eos_id], None, len(text.encode()))


def _message_bytes(messages: tuple[dict[str, Any], ...]) -> int:
    return sum(len((message.get("content") or "").encode()) for message in messages)


def split_text(text: str, limit: int | None) -> Iterator[str]:
    """``text`` in pieces of at most ``limit`` characters, cut at line ends where there are any."""
    if limit is None:
        yield text
        return
    start = 0
    while len(text) - start > limit:
        cut = text.rfind("\n", start, start + limit) + 1
        if cut <= start:
            cut = start + limit
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]
