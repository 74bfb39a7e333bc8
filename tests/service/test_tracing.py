from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dsv2.service.serving import Caller
from dsv2.service.settings import SettingsError
from dsv2.service.web import tracing
from dsv2.service.web.app import create_app
from dsv2.service.web.deps import Public
from dsv2.service.web.errors import ApiError
from dsv2.service.web.tracing import TracedAdmission, Tracing

SECRET = "sk-very-secret"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Books:
    """An admission whose tickets remember what they were told."""

    def __init__(self) -> None:
        self.request_id, self.headers = "r1", {"x-left": "3"}
        self.told: list[Any] = []

    async def admit(self, caller: Caller, **given: Any) -> Books:
        if given["prompt_tokens"] > 100:
            raise ApiError(402, "no money")
        self.told.append(given)
        return self

    def note(self, *counts: int) -> None:
        self.told.append(counts)

    async def close(self, finish: str) -> None:
        self.told.append(finish)


def ask(
    path: str, headers: Mapping[str, str] | None = None, method: str = "POST"
) -> tuple[int, tuple[ReadableSpan, ...], Books]:
    books, router = Books(), APIRouter(dependencies=[Public])
    admission = TracedAdmission(books)  # type: ignore[arg-type]

    @router.post("/v1/models/{name}/answers")
    async def answer(name: str, prompt: int = 9) -> JSONResponse:
        ticket = await admission.admit(
            Caller("u", "a", "user"), request_id="r1", model="tiny", prompt_tokens=prompt,
            completion_tokens=20,
        )  # fmt: skip
        assert (ticket.request_id, ticket.headers) == ("r1", {"x-left": "3"})
        await asyncio.sleep(0.02)
        ticket.note(9, 4, 1)
        await asyncio.sleep(0.02)
        ticket.note(9, 4, 7)
        await ticket.close("stop")
        return JSONResponse({})

    @router.post("/broken")
    async def broken() -> None:
        raise RuntimeError(SECRET)

    @router.get("/health")
    async def health() -> None: ...

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def identify(_: Any) -> Caller:
        raise AssertionError

    app = Tracing(create_app(identify, [router]), provider)

    async def act() -> int:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            sent = {"authorization": f"Bearer {SECRET}", **(headers or {})}
            return (await client.request(method, path, headers=sent)).status_code

    status = asyncio.run(act())
    provider.shutdown()
    return status, exporter.get_finished_spans(), books


def test_a_span_tells_of_route_model_tokens_and_times() -> None:
    status, (span,), books = ask(f"/v1/models/mine/answers?note={SECRET}")
    found = dict(span.attributes or {})
    assert status == 200 and span.name == "POST /v1/models/{name}/answers"
    first = found.pop("gen_ai.response.time_to_first_chunk")
    assert isinstance(first, float) and 0.015 < first < 0.035 + 1.0
    assert found == {
        "http.request.method": "POST",
        "http.route": "/v1/models/{name}/answers",
        "http.response.status_code": 200,
        "gen_ai.request.model": "tiny",
        "gen_ai.usage.input_tokens": 9,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.output_tokens": 7,
        "dsv2.request_id": "r1",
        "dsv2.finish": "stop",
    }
    assert books.told[1:] == [(9, 4, 1), (9, 4, 7), "stop"]
    assert SECRET not in span.to_json()


def test_the_callers_span_is_the_parent_unless_it_makes_no_sense() -> None:
    _, (span,), _ = ask("/v1/models/mine/answers", {"traceparent": PARENT})
    assert span.parent is not None and span.context is not None
    assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    _, (span,), _ = ask("/v1/models/mine/answers", {"traceparent": "00-" + "f" * 900})
    assert span.parent is None


def test_refusals_and_failures_have_spans_without_their_words() -> None:
    status, (span,), _ = ask("/v1/models/mine/answers?prompt=1000")
    assert status == 402 and span.status.is_unset
    assert (span.attributes or {})["http.response.status_code"] == 402
    status, (span,), _ = ask("/broken")
    assert status == 500 and not span.status.is_ok and not span.status.is_unset
    assert SECRET not in span.to_json()
    status, (span,), _ = ask("/no/such/" + SECRET)
    assert status == 404 and span.name == "POST" and SECRET not in span.to_json()


def test_those_who_watch_leave_no_spans() -> None:
    assert ask("/health", method="GET")[:2] == (200, ())


def test_the_environment_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = tracing.start()
    assert provider.resource.attributes["service.name"] == "dsv2"
    provider.shutdown()
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    provider = tracing.start()
    assert provider.resource.attributes["service.name"] == "mine"
    provider.shutdown()


def test_without_the_extra_the_setting_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match=r"dsv2\[otel\]"):
        tracing.start()


def test_nothing_is_imported_unless_asked() -> None:
    code = (
        "import sys, dsv2.service.server, dsv2.service.web.tracing\n"
        "optional = ('opentelemetry.sdk', 'opentelemetry.exporter', 'ray')\n"
        "found = [name for name in sys.modules if name.startswith(optional)]\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
