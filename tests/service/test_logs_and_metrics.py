from __future__ import annotations

import io
import json
import logging
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import cast

import pytest

from dsv2.engine.request import Limits, Request
from dsv2.service.serving import ServedModel
from dsv2.service.web.logs import set_up
from dsv2.service.web.metrics import Metrics
from dsv2.service.worker.wire import Stats, Tokens


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    logger = logging.getLogger()
    before = (list(logger.handlers), logger.level)
    yield logger
    logger.handlers[:] = before[0]
    logger.setLevel(before[1])


def test_a_line_is_one_object_whatever_is_in_it(root: logging.Logger) -> None:
    stream = io.StringIO()
    set_up("info", "json", stream)
    log = logging.getLogger("dsv2.service")
    log.info('a "name"\n{"level": "error"}', extra={"fields": {"status": 200, "path": "/v1\r\n"}})
    log.debug("not written")
    try:
        raise ValueError("why\nnot")
    except ValueError:
        log.exception("failed")
    lines = stream.getvalue().splitlines()
    first, second = [json.loads(line) for line in lines]
    assert first["message"] == 'a "name"\n{"level": "error"}'
    assert (first["level"], first["status"], first["path"]) == ("info", 200, "/v1\r\n")
    assert "ValueError: why" in second["trace"]


def test_text_stays_on_one_line(root: logging.Logger) -> None:
    stream = io.StringIO()
    set_up("warning", "text", stream)
    logging.getLogger("x").warning("one\ntwo", extra={"fields": {"status": 404}})
    (line,) = stream.getvalue().splitlines()
    assert line.endswith("one\\ntwo status=404")
    assert "WARNING" in line


@dataclass
class Idle:
    """An engine whose state is what a test says."""

    is_healthy: bool = True
    stats: Stats = field(default_factory=Stats)
    limits: Limits = field(default_factory=lambda: Limits(10, 10))
    description: str = "idle"

    async def stream(self, request: Request) -> AsyncGenerator[Tokens, None]:
        yield Tokens(request.id, finish_reason="stop")


def test_engines_are_looked_at_when_somebody_asks() -> None:
    engine = Idle(stats=Stats(running=3, generated_tokens=40))
    model = ServedModel("m", engine, cast("None", None), cast("None", None))  # type: ignore[arg-type]
    metrics = Metrics(lambda: [model])
    metrics.requests.labels("POST", "/v1/chat/completions", "200").inc()
    text = metrics.text().decode()
    assert 'dsv2_engine_up{model="m"} 1.0' in text
    assert 'dsv2_engine_running{model="m"} 3.0' in text
    assert 'dsv2_engine_generated_tokens_total{model="m"} 40.0' in text
    assert (
        'dsv2_http_requests_total{method="POST",route="/v1/chat/completions",status="200"}' in text
    )
    engine.is_healthy, engine.stats = False, Stats(running=0)
    text = metrics.text().decode()
    assert 'dsv2_engine_up{model="m"} 0.0' in text
    assert 'dsv2_engine_running{model="m"} 0.0' in text
