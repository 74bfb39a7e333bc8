"""What Prometheus sees: requests, tokens and waiting times of the API, and the engines' state.

Labels are names of routes and models alone: nothing that a caller can make up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dsv2.service.serving import ServedModel

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)
_TOTALS = {
    "preemptions": "Sequences put back into the line.",
    "prompt_tokens": "Tokens of admitted prompts.",
    "cached_tokens": "Of those, found in the prefix cache.",
    "generated_tokens": "Tokens given out.",
    "steps": "Steps computed.",
    "step_seconds": "Time that steps took.",
}
_STATES = {
    "running": "Sequences under way.",
    "waiting": "Sequences in line.",
    "free_blocks": "Cache blocks of 64 tokens that can be had.",
    "total_blocks": "All cache blocks.",
}


class Metrics:
    """The counters of one server process.

    Args:
        models: asks for the served models, whose engines are looked at when somebody asks.
    """

    def __init__(self, models: Callable[[], Iterable[ServedModel]]) -> None:
        self.registry = CollectorRegistry()
        to = self.registry
        self.requests = Counter(
            "dsv2_http_requests", "Answers by route and status.", ("method", "route", "status"),
            registry=to,
        )  # fmt: skip
        self.seconds = Histogram(
            "dsv2_http_request_seconds", "From a request to the end of its answer.", ("route",),
            buckets=_SECONDS, registry=to,
        )  # fmt: skip
        self.open = Gauge("dsv2_http_requests_open", "Requests under way.", registry=to)
        self.first = Histogram(
            "dsv2_time_to_first_token_seconds", "From a request to its first token.", ("model",),
            buckets=_SECONDS, registry=to,
        )  # fmt: skip
        self.next = Histogram(
            "dsv2_time_per_output_token_seconds", "Mean time between the tokens of an answer.",
            ("model",), buckets=_TOKEN_SECONDS, registry=to,
        )  # fmt: skip
        self.finished = Counter(
            "dsv2_answers", "Answers by how they ended.", ("model", "finish_reason"), registry=to
        )
        self.registry.register(_Engines(models))

    def request_begun(self) -> None:
        """See :class:`dsv2.service.web.http.RequestWatch`."""
        self.open.inc()

    def request_ended(self, method: str, route: str, status: int, seconds: float) -> None:
        """See :class:`dsv2.service.web.http.RequestWatch`."""
        self.open.dec()
        # A method is the caller's to make up, but no route takes one that is not its own.
        known = method if route != "none" else "any"
        self.requests.labels(known, route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def first_token(self, model: str, seconds: float) -> None:
        """See :class:`dsv2.service.inference.sse.AnswerWatch`."""
        self.first.labels(model).observe(seconds)

    def answered(self, model: str, finish: str, tokens: int, seconds: float) -> None:
        """See :class:`dsv2.service.inference.sse.AnswerWatch`."""
        self.finished.labels(model, finish).inc()
        if tokens > 1:
            self.next.labels(model).observe(seconds / (tokens - 1))

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)


class _Engines(Collector):
    def __init__(self, models: Callable[[], Iterable[ServedModel]]) -> None:
        self._models = models

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are known only once there are models."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The engines' last heartbeats."""
        models = list(self._models())
        up = GaugeMetricFamily("dsv2_engine_up", "Whether the step loop lives.", labels=["model"])
        for model in models:
            up.add_metric([model.name], float(model.engine.is_healthy))
        yield up
        for name, text in _STATES.items():
            gauge = GaugeMetricFamily(f"dsv2_engine_{name}", text, labels=["model"])
            for model in models:
                gauge.add_metric([model.name], getattr(model.engine.stats, name))
            yield gauge
        for name, text in _TOTALS.items():
            total = CounterMetricFamily(f"dsv2_engine_{name}", text, labels=["model"])
            for model in models:
                total.add_metric([model.name], getattr(model.engine.stats, name))
            yield total
