"""``dsv2 bench serve`` from its options to its tables, against a scripted server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dsv2.cli.main import app
from tests.service.fake_openai import FakeServer, Script, Seen, piece, refusal, usage, whole

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("COLUMNS", "120")


def bench(server: FakeServer, *words: str) -> Any:
    return CliRunner().invoke(app, ["bench", "serve", "--url", server.url, *words])


def good(number: int, seen: Seen) -> Script:
    return whole(piece("a"), piece("bc"), prompt=9, completion=3, cached=4)


def test_a_closed_loop_as_json(tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    words = ["--requests", "6", "--concurrency", "2", "--warmup", "3", "--input-tokens", "5",
             "--prefix-tokens", "2", "--output-tokens", "3", "--seed", "7",
             "--save", str(target), "--json"]  # fmt: skip
    with FakeServer(good, ("first", "second")) as server:
        result = bench(server, *words)
        bodies = [seen.body for seen in server.seen if seen.method == "POST"]
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["model"], found["endpoint"], found["load"]) == (
        "first",
        "completions",
        "2 at once",
    )
    assert (found["requests"], found["successful"], found["failures"]) == (6, 6, {})
    assert (found["input_tokens"], found["cached_tokens"], found["output_tokens"]) == (54, 24, 18)
    assert (found["chunks"], found["tokens_per_chunk"]) == (12, 1.5)
    assert found["peak_concurrency"] <= 2
    for name, count in (("ttft_ms", 6), ("tpot_ms", 6), ("itl_ms", 6), ("e2e_ms", 6)):
        assert found[name]["count"] == count
        assert found[name]["median"] <= found[name]["p99"] <= found[name]["max"]
    assert found["output_throughput"] == pytest.approx(18 / found["duration_s"])
    assert len(bodies) == 6 + 3
    assert {len(body["prompt"]) for body in bodies} == {7}
    assert len({tuple(body["prompt"][:2]) for body in bodies}) == 1
    assert {body["max_tokens"] for body in bodies} == {3}
    saved = json.loads(target.read_text("utf-8"))
    assert len(saved.pop("records")) == 6
    assert saved == found


def test_an_open_loop_of_chats_as_a_table(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n', "utf-8")
    with FakeServer(lambda number, seen: refusal(429, "Rate limit [b]") if number == 2 else
                    Script((piece("a", "stop"), usage(3, 1)))) as server:  # fmt: skip
        result = bench(server, "--rate", "inf", "--requests", "5", "--endpoint", "chat",
                       "--prompts", str(file), "--model", "other", "--respect-eos")  # fmt: skip
        bodies = [seen.body for seen in server.seen]
    assert result.exit_code == 0, result.output
    assert f"other at 127.0.0.1:{server.port}, all at once" in result.stdout
    cells = {
        line.split("│")[1].strip(): line.split("│")[2].strip()
        for line in result.stdout.splitlines()
        if line.count("│") == 3
    }
    assert (cells["successful requests"], cells["failed: HTTP 429"]) == ("4", "1")
    assert (cells["ended by stop"], cells["output tokens"], cells["input tokens"]) == (
        "4", "4", "12",
    )  # fmt: skip
    for name in ("TTFT", "TPOT", "ITL", "E2E"):
        assert name in result.stdout
    assert "HTTP 429, such as: Rate limit [b]" in result.stdout
    assert all(body["messages"] == [{"role": "user", "content": "hi"}] for body in bodies)
    assert not any("ignore_eos" in body for body in bodies)
    assert len(bodies) == 1 + 5


def test_the_environments_key_is_sent_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def script(number: int, seen: Seen) -> Script:
        is_known = seen.headers.get("authorization") == f"Bearer {KEY}"
        return good(number, seen) if is_known else refusal(401, "no")

    with FakeServer(script) as server:
        result = bench(server, "--requests", "2")
        assert result.exit_code == 0, result.output
        assert KEY not in result.output
        assert KEY not in bench(server, "--help").output
        monkeypatch.delenv("OPENAI_API_KEY")
        assert bench(server, "--requests", "2", "--key", KEY).exit_code == 0


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (refusal(401, "no key"), (), "HTTP 401: no key; give a key"),
        (refusal(402, "no money"), (), "HTTP 402: no money; the account has not enough"),
        (
            refusal(404, "The model 'x' does not exist"), ("--model", "x"),
            "does not exist; the server lists fake, more",
        ),
        (refusal(400, "ignore_eos is unknown"), (), "HTTP 400: ignore_eos is unknown"),
    ],
)  # fmt: skip
def test_a_server_that_refuses_ends_the_run_at_once(
    script: Script, words: tuple[str, ...], message: str
) -> None:
    with FakeServer(lambda number, seen: script, ("fake", "more")) as server:
        result = bench(server, *words)
        assert sum(seen.method == "POST" for seen in server.seen) == 1
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)


def test_a_server_that_is_not_there_or_lists_nothing() -> None:
    with FakeServer(good, ()) as server:
        result = bench(server)
    assert "the server lists no models" in str(result.exception)
    result = bench(server)
    assert isinstance(result.exception, ValueError)
    assert f"127.0.0.1:{server.port}/v1/models cannot be reached" in str(result.exception)
    with FakeServer(good, refusal(401, "who?")) as server:
        result = bench(server)
    assert "HTTP 401: who?; give a key" in str(result.exception)


def test_nothing_successful_is_an_exit_code() -> None:
    with FakeServer(lambda number, seen: refusal(503, "overloaded")) as server:
        result = bench(server, "--warmup", "0", "--requests", "4", "--json")
        assert result.exit_code == 1
        found = json.loads(result.stdout)
        assert (found["successful"], found["failures"]) == (0, {"HTTP 503": 4})
        assert found["ttft_ms"] is None
        shown = bench(server, "--warmup", "0", "--requests", "4")
        assert shown.exit_code == 1
        assert "HTTP 503, such as: overloaded" in shown.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rate", "2", "--concurrency", "3"), "give one"),
        (("--rate", "0"), "--rate is 0.0"),
        (("--rate", "nan"), "--rate is nan"),
        (("--rate", "inf", "--seconds", "1"), "say how many by --requests"),
        (("--seconds", "inf"), "--seconds is inf"),
        (("--timeout", "inf"), "--timeout is inf"),
        (("--endpoint", "chats"), "allowed are completions, chat"),
        (("--input-spread", "1"), "spread is 1.0"),
        (("--prompts", __file__, "--prefix-tokens", "1"), "is for random prompts"),
        (("--url", "nowhere"), "allowed is http://HOST:PORT"),
        (("--key", "a b"), "characters that no key has"),
    ],
)
def test_options_that_do_not_fit(words: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", "serve", *words])
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)


def test_the_help_defines_its_figures() -> None:
    shown = " ".join(CliRunner().invoke(app, ["bench", "serve", "--help"]).stdout.split())
    assert "(last piece - first piece) / (tokens - 1)" in shown
    assert "Failed requests are counted by kind and are in no latency" in shown
