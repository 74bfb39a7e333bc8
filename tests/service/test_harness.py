"""lm-eval's own API classes against the server: the same log-likelihoods as transformers'."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import dsv2.pocket
from dsv2.tokenizer import Tokenizer
from tests.service.running import Running, running

pytestmark = pytest.mark.slow

POCKET = Path(next(iter(dsv2.pocket.__path__)))
PAIRS = [
    ("What is 17 + 25?", " 17 + 25 = 42"),
    ("def add(a, b):", "\n    return a + b"),
    ("import numpy", " as np\n\n\ndef mean(x):\n    return np.mean(x)\n"),
    ("The", " quick brown fox"),
    ("x", "y" * 30),
    ("中文", "字符 and é"),
    ("a b c d e f g " * 20, "a b c"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("harness") / "data", "--dtype", "float32") as one:
        yield one


@pytest.fixture(scope="module")
def transformer() -> Any:
    """transformers' own implementation, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(POCKET, dtype=torch.float32)


def expected(transformer: Any, start: list[int], end: list[int]) -> tuple[float, bool]:
    with torch.no_grad():
        logits = transformer(torch.tensor([start + end])).logits[0, len(start) - 1 : -1]
    logprobs = logits.float().log_softmax(-1)
    targets = torch.tensor(end)
    chosen = logprobs[torch.arange(len(end)), targets]
    return float(chosen.sum()), bool((logprobs.argmax(-1) == targets).all())


def make(server: Running, kind: str, **options: Any) -> Any:
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    made = {"completions": LocalCompletionsAPI, "chat/completions": LocalChatCompletion}[kind]
    return made(
        base_url=f"{server.address}/v1/{kind}", model="pocket", max_length=2048, timeout=120,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"tokenizer_backend": "remote"},
        {"tokenizer_backend": "remote", "batch_size": 4},
        {"tokenizer_backend": "remote", "num_concurrent": 8},
        {"tokenizer_backend": "huggingface"},
    ],
    ids=str,
)
def test_loglikelihoods_equal_transformers(
    server: Running, transformer: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the ids that lm-eval sends: the remote tokenizer adds no BOS, that of a folder does."""
    import dsv2.hf  # transformers alone would take the tokenizer of the class that is named there

    assert dsv2.hf.POCKET
    monkeypatch.setenv("OPENAI_API_KEY", server.key)
    if options["tokenizer_backend"] == "remote":
        options = options | {"auth_token": server.key}
    else:
        options = options | {"tokenizer": str(POCKET), "add_bos_token": True}
    harness = make(server, "completions", **options)
    found = harness.loglikelihood([SimpleNamespace(args=pair) for pair in PAIRS])
    bos = Tokenizer.from_folder(POCKET).bos_id
    for pair, (ours, greedy) in zip(PAIRS, found, strict=True):
        start, end = (list(part) for part in harness._encode_pair(*pair))
        assert (start[0] == bos) == (options["tokenizer_backend"] == "huggingface")
        theirs, theirs_greedy = expected(transformer, start, end)
        assert ours == pytest.approx(theirs, abs=1e-3)
        assert greedy == theirs_greedy


@pytest.mark.parametrize("batch", [1, 4])
def test_texts_in_place_of_ids_have_the_same_loglikelihoods(
    server: Running, transformer: Any, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """``tokenized_requests=False``: lm-eval counts the tokens, and the server makes them.

    It writes the BOS out, which is plain text unless a request says otherwise, as lm-eval's cannot:
    so that is added here, and the documentation says to leave the option alone.
    """
    monkeypatch.setenv("OPENAI_API_KEY", server.key)
    harness = make(
        server, "completions", tokenizer_backend="huggingface", tokenizer=str(POCKET),
        add_bos_token=True, tokenized_requests=False, batch_size=batch,
    )  # fmt: skip
    payload = harness._create_payload
    texts: list[object] = []

    def parsing(messages: Any, **options: Any) -> Any:
        texts.append(messages if isinstance(messages, str) else messages[0])
        return payload(messages, **options) | {"parse_special": True}

    monkeypatch.setattr(harness, "_create_payload", parsing)
    found = harness.loglikelihood([SimpleNamespace(args=pair) for pair in PAIRS])
    assert texts and all(isinstance(text, str) for text in texts)
    tokenizer, compared = Tokenizer.from_folder(POCKET), 0
    for pair, (ours, greedy) in zip(PAIRS, found, strict=True):
        start, end = (list(part) for part in harness._encode_pair(*pair))
        said = tokenizer.decode(start + end)  # without the BOS
        if [tokenizer.bos_id, *tokenizer.encode(said)] != start + end:
            continue  # lm-eval's own ids, which a text cannot say
        compared += 1
        theirs, theirs_greedy = expected(transformer, start, end)
        assert ours == pytest.approx(theirs, abs=1e-3), pair
        assert greedy == theirs_greedy
    assert compared >= len(PAIRS) - 1


def test_texts_end_at_their_stops(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", server.key)
    harness = make(server, "completions", tokenizer_backend="remote", auth_token=server.key)
    wanted = {"until": ["\n\n", "\nclass", "\ndef", "\n#", "\nif"], "max_gen_toks": 24}
    asked = [
        SimpleNamespace(args=("def add(a, b):\n", wanted)),
        SimpleNamespace(args=("x", wanted)),
    ]
    found = harness.generate_until(asked)
    assert len(found) == 2
    assert "return" in found[0]
    assert not any(stop in text for text in found for stop in wanted["until"])  # type: ignore[attr-defined]


def test_chats(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", server.key)
    harness = make(server, "chat/completions")
    messages = harness.apply_chat_template([{"role": "user", "content": "What is 17 + 25?"}])
    asked = [SimpleNamespace(args=(messages, {"until": ["\n"], "max_gen_toks": 32}))]
    assert "42" in harness.generate_until(asked)[0]
