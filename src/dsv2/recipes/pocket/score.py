"""What pocket's card states: bits per byte, expert load, functions, sums, filled gaps."""

from __future__ import annotations

import hashlib
import lzma
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dsv2.engine.llm import LLM
from dsv2.engine.request import SamplingParams
from dsv2.model.transformer import Transformer
from dsv2.ragged import RaggedBatch
from dsv2.recipes.pocket.arithmetic import problems
from dsv2.recipes.pocket.conversations import ASK_FUNCTION, read_functions
from dsv2.recipes.pocket.corpus import texts_of
from dsv2.recipes.pocket.functions import Function, parses
from dsv2.recipes.pocket.gaps import SHOWN, Gap, GapMaker
from dsv2.recipes.pocket.python_code import code_of
from dsv2.tokenizer import ChatFormat, Tokenizer, chat_format
from dsv2.training.losses import next_token_loss

GREEDY = SamplingParams(max_tokens=320, temperature=0.0)
SAMPLE_BYTES = 1_200_000
"""Held-out text of each kind that bits per byte are measured on; more changes little."""
GAPS = {"single": (200, 48), "multi": (100, 160)}
"""Held-out gaps of each kind, and the tokens that an answer may have."""

_NUMBER = re.compile(r"-?\d+")
_FENCE = re.compile(r"```(?:python)?\n(.*?)(?:```|\Z)", re.S)


@dataclass(frozen=True)
class Compression:
    """Bits per UTF-8 byte of a text, and of ``xz -9`` on the whole of it.

    Attributes:
        text_bytes: bytes of the text.
        bits_per_byte: by the model's name.
        xz: of the compressor.
    """

    text_bytes: int
    bits_per_byte: dict[str, float]
    xz: float


@torch.inference_mode()
def bits_per_byte(
    model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], window: int
) -> tuple[float, torch.Tensor | None]:
    """Bits per byte over ``texts``, and the experts' loads ``[layers, E]`` while at it."""
    total = 0.0
    loads: torch.Tensor | None = None
    for tokens, targets in windows(tokenizer, texts, window, model.embed.device):
        loss = next_token_loss(model, RaggedBatch.packed(tokens, [len(tokens)]), targets)
        total += float(loss.nll)
        if loss.stats.layers:
            counts = loss.stats.expert_counts
            loads = counts if loads is None else loads + counts
    return total / math.log(2) / sum(len(text.encode()) for text in texts), loads


def windows(
    tokenizer: Tokenizer, texts: Iterable[str], window: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and those that follow them, at most ``window`` at a time.

    Every text starts behind a BOS; a long one is read in windows, each of which knows the last
    token of the one before and nothing else of it.
    """
    for text in texts:
        ids = [tokenizer.bos_id, *tokenizer.encode(text)]
        for start in range(0, len(ids) - 1, window):
            part = torch.tensor(ids[start : start + window + 1], device=device)
            yield part[:-1], part[1:]


def sample_of(texts: Iterable[str], size: int) -> list[str]:
    """Whole texts, each once, in the order of their hashes, up to ``size`` bytes."""
    ordered = sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).digest())
    taken, total = [], 0
    for text in ordered:
        total += len(text.encode())
        if total > size:
            break
        taken.append(text)
    return taken


def xz_bits_per_byte(texts: Sequence[str]) -> float:
    """Bits per byte of ``xz -9`` on the texts one after another."""
    whole = "".join(texts).encode()
    return 8 * len(lzma.compress(whole, preset=9)) / len(whole)


def sums_right(llm: LLM) -> dict[str, Any]:
    """Exact match on every held-out sum and difference, asked in a chat."""
    asked = [problem for problem in problems() if problem.held_out]
    talks = [[{"role": "user", "content": f"What is {p.question}?"}] for p in asked]
    params = SamplingParams(max_tokens=24, temperature=0.0)
    right = {"+": 0, "-": 0}
    for problem, done in zip(asked, llm.chat(talks, params), strict=True):
        numbers = _NUMBER.findall(done.text.replace("- ", "-").rpartition("=")[2])
        right[problem.sign] += bool(numbers) and int(numbers[-1]) == problem.answer
    return {
        "asked": len(asked),
        "right": sum(right.values()),
        "share": sum(right.values()) / len(asked),
    }


def function_body(text: str) -> str:
    """The lines of a completion that belong to the function: up to the first that dedents."""
    kept = []
    for line in text.splitlines():
        if line.strip() and not line.startswith((" ", "\t")):
            break
        kept.append(line)
    return "\n".join(kept) + "\n"


def completions_parse(llm: LLM, functions: Sequence[Function]) -> dict[str, Any]:
    """Share of held-out functions whose completion from signature and docstring parses.

    A completion that is still unfinished when its tokens run out counts as it is.
    """
    done = llm.generate([function.opening for function in functions], GREEDY)
    good = sum(
        bool(function_body(one.text).strip()) and parses(function.opening + function_body(one.text))
        for function, one in zip(functions, done, strict=True)
    )
    return {"asked": len(functions), "parse": good, "share": good / len(functions)}


def requests_parse(llm: LLM, functions: Sequence[Function]) -> dict[str, Any]:
    """Share of chat answers to requests for held-out functions that hold Python that parses."""
    asked = [function for function in functions if not function.is_method]
    talks = [
        [
            {
                "role": "user",
                "content": ASK_FUNCTION[0].format(name=one.name, purpose=one.purpose),
            }
        ]
        for one in asked
    ]
    good = 0
    for one in llm.chat(talks, GREEDY):
        found = _FENCE.search(one.text)
        good += found is not None and "def " in found[1] and parses(found[1])
    return {"asked": len(asked), "parse": good, "share": good / len(asked)}


def held_out_functions(corpus: Path) -> list[Function]:
    """Functions of held-out files that no training file has as well."""
    known = {function.body for function in read_functions(corpus / "train" / "code.jsonl")}
    found = read_functions(corpus / "validation" / "code.jsonl")
    return [function for function in found if function.body not in known]


def held_out_gaps(corpus: Path, chat: ChatFormat, context: int) -> dict[str, list[Gap]]:
    """Gaps of held-out files: one line or the rest of one, and two to eight lines or a body.

    Around each stand the lines that fit :data:`SHOWN` characters; gaps that ask for more tokens
    than ``context`` are left out.
    """
    found: dict[str, list[Gap]] = {name: [] for name in GAPS}
    texts = set(texts_of(corpus / "validation" / "code.jsonl"))
    for text in sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest()):
        if (code := code_of(text)) is None or not code.code:
            continue
        maker = GapMaker(f"score {hashlib.sha256(text.encode()).hexdigest()}")
        for name, make in (
            ("single", maker.rest_of_line),
            ("single", maker.one_line),
            ("multi", maker.lines),
            ("multi", maker.body),
        ):
            span = make(code)
            wanted, budget = GAPS[name]
            if span is not None and len(found[name]) < wanted:
                gap = _shown(text, *span)
                lines = gap.middle.strip().count("\n") + 1
                size = len(chat.fim(gap.prefix, gap.suffix)) + budget
                fits = size <= context and len(gap.middle) < 2 * budget
                if fits and (name == "single") == (lines == 1) and gap.middle.strip("()[]{}:, \n"):
                    found[name].append(gap)
    return found


def _shown(text: str, start: int, stop: int) -> Gap:
    first = 0 if start <= SHOWN else text.find("\n", start - SHOWN) + 1
    last = len(text) if len(text) - stop <= SHOWN else text.rfind("\n", 0, stop + SHOWN) + 1
    return Gap(text, start, stop, min(first, start), max(last, stop))


def gaps_filled(llm: LLM, chat: ChatFormat, gaps: dict[str, list[Gap]]) -> dict[str, Any]:
    """For each kind of gap the shares filled as in the file, so that it parses, and to an end.

    An answer that its tokens cut off counts as it is; an empty one does not parse.
    """
    result = {}
    for name, some in gaps.items():
        params = SamplingParams(max_tokens=GAPS[name][1], temperature=0.0)
        done = llm.generate([chat.fim(gap.prefix, gap.suffix) for gap in some], params)
        pairs = list(zip(some, done, strict=True))
        exact = sum(one.text.rstrip() == gap.middle for gap, one in pairs)
        parse = sum(bool(one.text.strip()) and parses(gap.filled(one.text)) for gap, one in pairs)
        ended = sum(one.finish_reason == "stop" for one in done)
        result[name] = {
            "asked": len(some),
            "exact": exact / len(some),
            "parse": parse / len(some),
            "ended": ended / len(some),
        }
    return result


def score_bases(
    corpus: Path, tokenizer: Tokenizer, bases: dict[str, Transformer]
) -> dict[str, Any]:
    """Bits per byte of the pre-trained models, by name, and the experts' load."""
    result: dict[str, Any] = {}
    for kind in ("code", "prose"):
        texts = sample_of(texts_of(corpus / "validation" / f"{kind}.jsonl"), SAMPLE_BYTES)
        found: dict[str, float] = {}
        for name, model in bases.items():
            window = model.config.max_position_embeddings
            found[name], loads = bits_per_byte(model, tokenizer, texts, window)
            if loads is not None and kind == "code":
                load = loads.float() / loads.float().mean(1, keepdim=True)
                result["expert_load"] = {"max": float(load.max()), "min": float(load.min())}
        size = sum(len(text.encode()) for text in texts)
        result[kind] = asdict(Compression(size, found, xz_bits_per_byte(texts)))
    return result


def score_tuned(corpus: Path, llm: LLM) -> dict[str, Any]:
    """What a tuned model does with held-out functions, sums and gaps."""
    functions = held_out_functions(corpus)
    chat = chat_format(llm.tokenizer.chat_format_name, llm.tokenizer)
    return {
        "completions": completions_parse(llm, functions),
        "requests": requests_parse(llm, functions),
        "arithmetic": sums_right(llm),
        "fill": gaps_filled(llm, chat, held_out_gaps(corpus, chat, llm.limits.max_context)),
    }
