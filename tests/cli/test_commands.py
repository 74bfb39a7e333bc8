"""Commands as a user types them, on the shipped model where they need one."""

from __future__ import annotations

import io
import json
import re
import signal
import time
from pathlib import Path

import pytest
from rich.console import Console

from dsv2 import LLM, SamplingParams
from dsv2.cli.chat import Conversation
from tests.program import Program, dsv2
from tests.text import sources
from tests.training.make import recipe, write_shards


def test_run_answers_a_sum() -> None:
    done = dsv2("run", "What is 17 + 25?")
    assert done.returncode == 0
    assert re.fullmatch(
        r"memory: weights [\d.]+ MB in \w+, cache [\d.]+ MB in \w+ for 2,048 tokens, "
        r"context 2,048 of 2,048, [\d.]+ GB free\n",
        done.stderr,
    )
    assert "42" in done.stdout


def test_run_reads_stdin_and_prints_json() -> None:
    found = json.loads(dsv2("run", "--json", stdin="What is 30 - 12?").stdout)
    assert "18" in found["text"]
    assert found["finish_reason"] == "stop"
    assert found["completion_tokens"] > 1
    assert found["timings"]["decode_tokens_per_second"] > 0


def test_run_takes_a_model_a_system_message_and_sampling(tiny_folder: Path) -> None:
    arguments = ("run", str(tiny_folder), "hello", "--max-tokens", "6", "--temperature", "1",
                 "--seed", "3", "--verbose")  # fmt: skip
    first, second = dsv2(*arguments), dsv2(*arguments)
    assert first.returncode == 0
    assert first.stdout == second.stdout
    assert "prompt tokens at" in first.stderr
    number = dsv2("run", "What is 20 + 22?", "--system", "Answer with the number only.")
    assert number.stdout.strip() == "42"


def test_raw_text_is_continued() -> None:
    done = dsv2("run", "--raw", "def add(a, b):\n", "--max-tokens", "12")
    assert done.returncode == 0
    assert done.stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "nosuchmodel", "hi"), "nosuchmodel"),
        (("run", "a", "b", "c"), "quote the prompt"),
        (("run", " "), "prompt is empty"),
        (("run", "x", "--max-tokens", "100000"), "maximum context length"),
        (("run", "x", "--device", "tpu"), "device"),
        (("train", "/nonexistent.yaml", "--out", "x"), "nonexistent"),
        (("plot", "/nonexistent"), "does not exist"),
        (("plot", "/usr"), "no metrics"),
        (("prepare", "/nonexistent", "--out", "/tmp/never"), "no such file"),
        (("tokenizer", "train", "/nonexistent", "--out", "/tmp/never"), "no such file"),
    ],
)
def test_errors_are_short_and_exit_with_2(arguments: tuple[str, ...], words: str) -> None:
    done = dsv2(*arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_whole_pipeline_from_text_to_an_answer(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for place, text in enumerate(sources()):
        (texts / f"{place}.py").write_text(text)
    made = dsv2("tokenizer", "train", str(texts), "--out", str(tmp_path / "v"), "--vocab-size",
                "600")  # fmt: skip
    assert made.returncode == 0, made.stderr
    prepared = dsv2(
        "prepare", f"{texts}@1.5", "--out", str(tmp_path / "shards"), "--tokenizer",
        str(tmp_path / "v"), "--validation", "0.2", "--fim-rate", "0.3", "--json",
    )  # fmt: skip
    assert prepared.returncode == 0, prepared.stderr
    report = json.loads(prepared.stdout)
    assert report[0]["tokens"]["train"] > report[0]["tokens"]["validation"] > 0
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
stage: pretrain
model: {{vocab_size: 600, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2,
  num_attention_heads: 2, q_lora_rank: null, kv_lora_rank: 16, qk_nope_head_dim: 8,
  qk_rope_head_dim: 8, v_head_dim: 8, n_routed_experts: 4, n_shared_experts: 1,
  num_experts_per_tok: 2, moe_intermediate_size: 16, first_k_dense_replace: 1,
  max_position_embeddings: 128, bos_token_id: 584, eos_token_id: 585}}
data: {{train: {tmp_path}/shards/train, validation: {tmp_path}/shards/validation}}
tokenizer: {tmp_path}/v
batch: {{sequence_length: 64, rows: 4, micro_rows: 4}}
tokens: 2048
precision: fp32
validation_rows: 2
"""
    )
    run = tmp_path / "run"
    stopped = dsv2("train", str(recipe), "--out", str(run), "--stop-after", "3", "--json",
                   "--set", "optimizer.warmup_steps=2")  # fmt: skip
    assert json.loads(stopped.stdout)["done"] is False
    ended = dsv2("train", str(recipe), "--out", str(run), "--set", "optimizer.warmup_steps=2")
    assert ended.returncode == 0, ended.stderr
    assert "8 steps, 2,048 tokens" in ended.stdout
    drawn = dsv2("plot", str(run))
    assert drawn.returncode == 0, drawn.stderr
    assert list(run.glob("*.png"))
    answered = dsv2("run", str(run / "model"), "x", "--max-tokens", "4", "--json")
    assert json.loads(answered.stdout)["completion_tokens"] <= 4


def test_ctrl_c_saves_the_state_of_a_training(tmp_path: Path) -> None:
    data = write_shards(tmp_path / "data", [40, 70, 33] * 6)
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(recipe(data, tokens=10**9).model_dump_json())
    run = tmp_path / "run"
    process = Program("train", str(recipe_file), "--out", str(run), "--json")
    metrics = run / "metrics.jsonl"
    for _ in range(400):
        if metrics.exists() and metrics.read_text().count("\n") >= 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "stopping after this step" in err
    summary = json.loads(out)
    assert summary["done"] is False
    assert summary["steps"] >= 3
    assert list((run / "state").glob("step-*"))


class Talk:
    """A conversation whose screen can be read."""

    def __init__(self, folder: Path) -> None:
        self.console = Console(record=True, width=100, file=io.StringIO())
        params = SamplingParams(max_tokens=8, temperature=0.0)
        self.talk = Conversation(LLM(folder, device="cpu"), params, None, self.console)

    def say(self, line: str) -> str:
        self.talk.take(line)
        return self.console.export_text()


@pytest.fixture
def talk(tiny_folder: Path) -> Talk:
    return Talk(tiny_folder)


def test_chat_keeps_history_and_clears_it(talk: Talk) -> None:
    talk.say("hello")
    talk.say("again")
    assert [m["role"] for m in talk.talk.messages] == ["user", "assistant"] * 2
    assert "cleared" in talk.say("/clear")
    assert talk.talk.messages == []


def test_chat_commands(talk: Talk, tmp_path: Path) -> None:
    assert "/save FILE" in talk.say("/help")
    assert "unknown command /nosuch" in talk.say("/nosuch")
    talk.say("/system be brief")
    assert talk.talk.system == "be brief"
    assert "top_k = 5" in talk.say("/set top_k 5")
    assert talk.talk.params.top_k == 5
    assert "temperature is -1" in talk.say("/set temperature -1")
    assert "cannot be set" in talk.say("/set nosuch 1")
    assert "must be a number" in talk.say("/set top_p high")
    assert "top_k = 5" in talk.say("/set")
    talk.say("hello")
    path = tmp_path / "talk.json"
    assert "saved" in talk.say(f"/save {path}")
    saved = json.loads(path.read_text())
    assert (saved["system"], len(saved["messages"])) == ("be brief", 2)
    assert "needs a file name" in talk.say("/save")
    assert "No such file" in talk.say("/save /nonexistent/x.json")
    talk.say("/exit")
    assert not talk.talk.open


def test_an_interrupt_stops_the_answer_and_not_the_program(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, steps = talk.talk.llm.engine, iter(range(100))
    usual = engine.step

    def interrupted() -> object:
        if next(steps) == 3:
            raise KeyboardInterrupt
        return usual()

    monkeypatch.setattr(engine, "step", interrupted)
    assert "(stopped)" in talk.say("hello")
    assert len(talk.talk.messages) == 2
    assert not engine.has_work
    talk.say("again")
    assert len(talk.talk.messages) == 4


def test_a_message_that_does_not_fit_is_an_error_and_forgotten(talk: Talk) -> None:
    assert "context length" in talk.say("word " * 2000)
    assert talk.talk.messages == []


def test_chat_ends_with_its_input() -> None:
    done = dsv2(
        "chat", "--max-tokens", "30", "--temperature", "0", stdin="What is 11 + 22?\n/exit\n"
    )
    assert done.returncode == 0
    assert "33" in done.stdout
