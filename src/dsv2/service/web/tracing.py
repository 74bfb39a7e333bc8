"""Traces by OpenTelemetry: a span per request of the API, as ``OTEL_*`` variables configure it.

A span tells of route, status, model, counts and times; never of prompts, answers, keys or who asks.
Nothing of OpenTelemetry is imported unless :func:`start` is called.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dsv2.service.platform.idempotent import Attempt
from dsv2.service.serving import Admission, Caller, Finish, Ticket
from dsv2.service.settings import SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

_SILENT = frozenset(("/health", "/ready", "/metrics"))
"""Asked every few seconds by those who watch the server; no spans."""
_begun: ContextVar[float] = ContextVar("dsv2_request_begun")


def start() -> TracerProvider:
    """Where spans go, as the standard environment variables say; to be shut down at the end.

    Raises:
        SettingsError: the extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            f"trace is True, which needs the extra: pip install 'dsv2[otel]' ({error})"
        ) from error
    # The environment's own name of the service goes before ours.
    resource = Resource.create({SERVICE_NAME: "dsv2"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Tracing:
    """A span around each request; a W3C ``traceparent`` makes it a child of the caller's span.

    Args:
        app: what is behind it.
        provider: of :func:`start`.
    """

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app, self._trace = app, trace
        self._tracer = provider.get_tracer("dsv2.service")
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application."""
        if scope["type"] != "http" or scope["path"] in _SILENT:
            await self._app(scope, receive, send)
            return
        context = self._propagator.extract(_carrier(scope))
        method: str = scope["method"]
        span = self._tracer.start_span(method, context=context, kind=self._trace.SpanKind.SERVER)
        token = _begun.set(time.perf_counter())

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                status: int = message["status"]
                span.set_attribute("http.response.status_code", status)
                if status >= 500:
                    span.set_status(self._trace.StatusCode.ERROR)
            await send(message)

        try:
            # An exception's text may hold what the caller sent: its class alone is recorded.
            with self._trace.use_span(
                span, end_on_exit=False, record_exception=False, set_status_on_exception=False
            ):
                await self._app(scope, receive, answer)
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(self._trace.StatusCode.ERROR)
            raise
        finally:
            span.set_attribute("http.request.method", method)
            if (route := getattr(scope.get("route"), "path", None)) is not None:
                span.set_attribute("http.route", route)
                span.update_name(f"{method} {route}")
            span.end()
            _begun.reset(token)


def _carrier(scope: Scope) -> dict[str, str]:
    """The two headers of W3C's trace context."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name in (b"traceparent", b"tracestate"):
            found[name.decode()] = value.decode("latin-1")
    return found


class TracedAdmission:
    """An admission that tells the request's span about model, tokens and times.

    Args:
        admission: the one that decides.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    async def admit(
        self,
        caller: Caller,
        *,
        request_id: str,
        model: str,
        prompt_tokens: int,
        completion_tokens: int,
        attempt: Attempt | None = None,
    ) -> Ticket:
        """As :meth:`Admission.admit`."""
        from opentelemetry import trace

        span = trace.get_current_span()
        span.set_attribute("gen_ai.request.model", model)
        span.set_attribute("dsv2.request_id", request_id)
        ticket = await self._admission.admit(
            caller, request_id=request_id, model=model, prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens, attempt=attempt,
        )  # fmt: skip
        return _TracedTicket(ticket, span, _begun.get(time.perf_counter()))


class _TracedTicket:
    """A ticket that remembers what it was told, and puts it into the span at the end."""

    def __init__(self, ticket: Ticket, span: Span, begun: float) -> None:
        self._ticket, self._span, self._begun = ticket, span, begun
        self.request_id: str = ticket.request_id
        self.headers: Mapping[str, str] = ticket.headers
        self._counts: tuple[int, int, int] | None = None

    def note(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> None:
        if self._counts is None:
            seconds = time.perf_counter() - self._begun
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)
        self._counts = prompt_tokens, cached_tokens, completion_tokens
        self._ticket.note(prompt_tokens, cached_tokens, completion_tokens)

    def keep(self, status: int, content_type: str, body: bytes) -> None:
        self._ticket.keep(status, content_type, body)

    async def close(self, finish: Finish) -> None:
        if self._counts is not None:
            prompt, cached, completion = self._counts
            self._span.set_attribute("gen_ai.usage.input_tokens", prompt)
            self._span.set_attribute("gen_ai.usage.cache_read.input_tokens", cached)
            self._span.set_attribute("gen_ai.usage.output_tokens", completion)
        self._span.set_attribute("dsv2.finish", finish)
        await self._ticket.close(finish)
