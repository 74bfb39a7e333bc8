"""Closed and open loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dsv2.service.load.arrivals import arrivals
from dsv2.service.load.report import make_report
from tests.service.fake_openai import (
    DONE,
    FakeServer,
    Script,
    Until,
    piece,
    whole,
)
from tests.service.load.runs import SLACK, closed, opened


def test_a_closed_loop_asks_when_an_answer_has_ended() -> None:
    with FakeServer(lambda number, seen: whole(0.02, piece("a"), completion=1)) as server:
        report = make_report(closed(server, 20, users=4))
        assert server.connections == 4  # each used for five requests
    assert (report.successful, report.peak_concurrency) == (20, 4)
    assert 5 * 0.02 <= report.duration_s < 5 * 0.02 + 2 * SLACK
    assert report.request_throughput == pytest.approx(20 / report.duration_s)


def test_no_connection_is_used_that_the_server_means_to_close() -> None:
    script = Script((piece("a", "stop"), DONE), headers={"Connection": "close"})
    with FakeServer(lambda number, seen: script) as server:
        assert make_report(closed(server, 3)).successful == 3
        assert server.connections == 3


def test_a_time_ends_a_closed_loop_after_the_answers_under_way() -> None:
    with FakeServer(lambda number, seen: whole(0.05, piece("a"), completion=1)) as server:
        run = closed(server, None, users=2, seconds=0.12)  # type: ignore[arg-type]
    assert all(record.failure is None for record in run.records)
    assert 2 <= len(run.records) <= 6
    assert max(record.started for record in run.records) - run.start < 0.12 + SLACK


def test_an_open_loop_waits_for_no_answer() -> None:
    # A loop that waited would wait for ever: nothing is answered before all have come.
    with FakeServer(lambda number, seen: whole(Until(20), piece("a"), completion=1)) as server:
        run = opened(server, rate=200.0, seed=3, requests=20)
    due = list(itertools.islice(arrivals(200.0, 3), 20))
    assert [record.due - run.start for record in run.records] == pytest.approx(due)
    report = make_report(run)
    assert (report.successful, report.peak_concurrency) == (20, 20)
    assert report.latest_start_ms == pytest.approx(
        1e3 * max(record.started - record.due for record in run.records)
    )
    # The fast event loop's timers count in whole milliseconds.
    assert all(record.started > record.due - 0.002 for record in run.records)


def test_all_at_once_and_none_lost() -> None:
    with FakeServer(lambda number, seen: whole(Until(200), piece("a"), completion=1)) as server:
        report = make_report(opened(server, rate=float("inf"), requests=200))
    assert (report.successful, report.failures) == (200, {})
    assert report.peak_concurrency == 200


def test_an_open_loop_ends_after_a_time() -> None:
    with FakeServer(lambda number, seen: whole(completion=1)) as server:
        run = opened(server, rate=100.0, seconds=0.2)
        expected = len(list(itertools.takewhile(lambda due: due < 0.2, arrivals(100.0, 0))))
        assert len(run.records) == expected > 5
        with pytest.raises(ValueError, match="needs a number of requests"):
            opened(server, rate=float("inf"), seconds=1.0)


def test_arrivals_are_a_poisson_process_by_seed() -> None:
    due = np.array(list(itertools.islice(arrivals(50.0, 1), 4000)))
    gaps = np.diff(due, prepend=0.0)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.08)  # exponential: as long as the mean
    assert (gaps > 1 / 50).mean() == pytest.approx(np.exp(-1), abs=0.03)
    assert list(itertools.islice(arrivals(50.0, 1), 3)) == due[:3].tolist()
    assert next(arrivals(50.0, 2)) != due[0]
    assert list(itertools.islice(arrivals(float("inf"), 0), 3)) == [0.0, 0.0, 0.0]
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"rate is {rate}"):
            arrivals(rate, 0)
