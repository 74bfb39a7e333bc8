"""Figures of runs, exactly."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv2.service.load.record import Record
from dsv2.service.load.report import make_report, percentile, save, spread
from dsv2.service.load.run import Run


def record(number: int, started: float, times: list[float], ended: float, **more: Any) -> Record:
    own = Record(number, started - 0.001 * number, started, times=array("d", times), ended=ended)
    own.first = times[0] if times else None
    own.is_counted = True
    own.finish_reason = "stop"
    for name, value in more.items():
        setattr(own, name, value)
    return own


def test_every_figure_of_a_report(tmp_path: Path) -> None:
    records = [
        record(0, 1.0, [1.2, 1.3, 1.5], 1.6, prompt_tokens=10, completion_tokens=4,
               cached_tokens=8),
        record(1, 1.1, [1.5], 2.0, prompt_tokens=20, completion_tokens=1, finish_reason="length",
               is_counted=False),
        record(2, 1.2, [1.25, 9.0], 3.0, prompt_tokens=99, completion_tokens=99, failure="x",
               message="first"),
        record(3, 2.0, [], 2.1, failure="x", message="second", is_counted=False),
    ]  # fmt: skip
    run = Run(records, 0.5, 0.5)
    report = make_report(run)
    assert (report.requests, report.successful, report.failures) == (4, 2, {"x": 2})
    assert report.messages == {"x": "first"}
    assert report.finish_reasons == {"stop": 1, "length": 1}
    assert report.duration_s == pytest.approx(2.0)  # 1.0 to 3.0
    assert (report.input_tokens, report.cached_tokens, report.output_tokens) == (30, 8, 5)
    assert (report.chunks, report.tokens_per_chunk, report.uncounted) == (4, 1.25, 1)
    assert report.request_throughput == pytest.approx(1.0)
    assert report.output_throughput == pytest.approx(2.5)
    assert report.total_throughput == pytest.approx(17.5)
    assert report.peak_concurrency == 3  # the fourth is sent when the second has just ended
    assert report.latest_start_ms == pytest.approx(3.0)
    assert report.client_cpu == pytest.approx(0.25)
    assert report.ttft_ms is not None and report.e2e_ms is not None
    assert (report.ttft_ms.count, report.ttft_ms.mean) == (2, pytest.approx(300))
    assert (report.ttft_ms.median, report.ttft_ms.max) == pytest.approx((300, 400))
    assert (report.ttft_ms.p90, report.ttft_ms.p99) == pytest.approx((380, 398))
    assert report.tpot_ms is not None and report.itl_ms is not None
    assert (report.tpot_ms.count, report.tpot_ms.mean) == (1, pytest.approx(100))
    assert (report.itl_ms.count, report.itl_ms.mean) == (2, pytest.approx(150))
    assert report.e2e_ms.mean == pytest.approx(750)
    target = tmp_path / "run.json"
    save(target, run, {"model": "m", **report.to_dict()})
    content = json.loads(target.read_text("utf-8"))
    assert (content["model"], content["ttft_ms"]["count"]) == ("m", 2)
    first, _, _, last = content["records"]
    assert (first["started"], first["first"], first["ended"]) == (0.5, 0.7, 1.1)
    assert first["chunks"] == [0.7, 0.8, 1.0]
    assert (last["failure"], last["message"], last["first"]) == ("x", "second", None)


def test_nothing_measured_is_no_figure() -> None:
    report = make_report(Run([], 0.0, 0.0))
    assert (report.requests, report.output_throughput, report.ttft_ms) == (0, 0.0, None)
    assert json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("count", [1, 2, 3, 100, 101])
def test_percentiles_are_numpys(count: int) -> None:
    values = np.random.default_rng(count).exponential(size=count).tolist()
    for share in (0.0, 0.5, 0.9, 0.95, 0.99, 1.0):
        assert percentile(sorted(values), share) == pytest.approx(np.quantile(values, share))
    found = spread([*values, None])
    assert found is not None
    assert found.count == count
    assert found.mean == pytest.approx(1e3 * np.mean(values))
    assert (found.p95, found.max) == pytest.approx(
        (1e3 * np.quantile(values, 0.95), 1e3 * max(values))
    )
