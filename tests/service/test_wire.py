from __future__ import annotations

import subprocess
import sys
from types import MappingProxyType

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dsv2.engine.request import Request, SamplingParams, Structure
from dsv2.service.worker.process import WorkerOptions, addresses
from dsv2.service.worker.wire import (
    Ask,
    Batch,
    Cancel,
    Heartbeat,
    Logprobs,
    Stats,
    Submit,
    Tokens,
    Welcome,
    decode_from_engine,
    decode_to_engine,
    encode,
    from_wire,
    join,
    to_wire,
)

FULL = SamplingParams(
    max_tokens=3, min_tokens=1, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1,
    presence_penalty=1.0, frequency_penalty=-1.0, repetition_penalty=1.1,
    logit_bias={5: -1.5, 102_399: 2.0}, seed=2**63 - 1, stop=["a", "b"], stop_token_ids=[1, 2],
    ignore_eos=True, logprobs=5, prompt_logprobs=0, structure=Structure("regex", "a+"),
)  # fmt: skip


@pytest.mark.parametrize("params", [SamplingParams(), FULL, SamplingParams(stop="x", seed=0)])
def test_a_request_arrives_as_it_was_sent(params: SamplingParams) -> None:
    request = Request("id", (1, 2, 102_399), params, priority=-3, tenant="t", salt="s")
    message = decode_to_engine(encode(to_wire(request)))
    assert isinstance(message, Submit) and from_wire(message) == request


def test_defaults_are_not_sent_and_any_mapping_is_taken() -> None:
    assert to_wire(Request("id", (1,), SamplingParams())).params == {}
    bias = MappingProxyType({5: 1.0})
    sent = to_wire(Request("id", (1,), SamplingParams(logit_bias=bias)))
    assert decode_to_engine(encode(sent)) == Submit("id", [1], {"logit_bias": {5: 1.0}})


def test_the_other_messages_arrive_too() -> None:
    for order in (Cancel("id"), Ask()):
        assert decode_to_engine(encode(order)) == order
    scores = Logprobs(-float("inf"), [(3, -0.5)])
    full = Tokens("id", [1, 2], [scores, scores], "stop", "e", "f", 64, [None, scores])
    for message in (
        Batch([Tokens("id", [1]), full]),
        Heartbeat(0.5, Stats(running=3, step_seconds=1.5)),
        Welcome("m", 1, 2, 3, 4),
    ):
        assert decode_from_engine(encode(message)) == message


@example(b"\x91\xa4\x00\x00\x00\x80")  # a text that is no UTF-8
@example(b"\x91" * 5000)  # nested deeper than the decoder goes
@given(st.binary(max_size=200))
def test_other_bytes_are_no_message(frame: bytes) -> None:
    for decode in (decode_to_engine, decode_from_engine):
        try:
            decode(frame)
        except msgspec.MsgspecError:
            continue


@pytest.mark.parametrize(
    "frame",
    [
        ["submit", "id", [1.5], {}],
        ["submit", 5, [1], {}],
        ["batch", []],
        {"type": "ask"},
        [],
    ],
)
def test_what_does_not_fit_is_refused(frame: object) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_to_engine(msgspec.msgpack.encode(frame))


@pytest.mark.parametrize(
    "params", [{"no_such": 1}, {"structure": 5}, {"structure": ["a", "b", "c"]}]
)
def test_unknown_parameters_are_errors(params: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError)):
        from_wire(Submit("id", [1], params))


def test_joined_outputs_are_one_after_the_other() -> None:
    one, two = Logprobs(-1.0), Logprobs(-2.0)
    first = Tokens("id", [1], [one], cached_tokens=64, prompt_logprobs=[None])
    assert join(first, Tokens("id", [2], [two])) == Tokens(
        "id", [1, 2], [one, two], cached_tokens=64, prompt_logprobs=[None]
    )
    ended = join(first, Tokens("id", finish_reason="error", error="why"))
    assert (ended.tokens, ended.finish_reason, ended.error) == ([1, 2], "error", "why")
    assert ended.cached_tokens == 64 and ended.prompt_logprobs == [None]


def test_sockets_are_files_and_options_are_checked() -> None:
    where = addresses("/run/dsv2", "pocket")
    assert where.requests.startswith("ipc:///run/dsv2/") and where.heartbeat != where.requests
    for name in ("", "a/b", "..", "a b", "x" * 100):
        with pytest.raises(ValueError, match="name"):
            addresses("/run/dsv2", name)
    with pytest.raises(msgspec.ValidationError, match="no_such"):
        msgspec.json.decode(b'{"model":"m","folder":"f","no_such":1}', type=WorkerOptions)


def test_the_api_process_needs_no_torch() -> None:
    program = (
        "import sys, dsv2.service.worker.client, dsv2.service.worker.supervisor;"
        "import dsv2.service.worker.main;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
