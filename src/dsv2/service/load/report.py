"""What a run says about the server."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsv2.service.load.record import Record
from dsv2.service.load.run import Run


@dataclass(frozen=True)
class Spread:
    """Milliseconds of many measurements.

    A percentile between two measurements lies on the straight line between them, as in NumPy.

    Attributes:
        count: measurements.
        mean: of them.
        median: of them.
        p90: 90 % are no longer.
        p95: 95 % are no longer.
        p99: 99 % are no longer.
        max: the longest.
    """

    count: int
    mean: float
    median: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True)
class Report:
    """The figures of a run. Requests that failed are in ``failures``, in no other figure.

    Attributes:
        requests: sent.
        successful: with a whole answer.
        failures: the others by kind.
        messages: one failure's message of every kind.
        finish_reasons: of the whole answers.
        duration_s: from the first request's sending to the last answer's end.
        input_tokens: of prompts, as the server counted.
        cached_tokens: of those, found in its cache.
        output_tokens: of answers, as the server counted.
        uncounted: whole answers without the server's count: their chunks stand for tokens.
        chunks: events with something of an answer.
        tokens_per_chunk: output tokens over chunks: above 1 where the server puts several in one.
        request_throughput: whole answers per second.
        output_throughput: output tokens per second.
        total_throughput: input and output tokens per second.
        peak_concurrency: most requests under way at once, failed ones among them.
        latest_start_ms: longest that a request was sent after it was due: the client's own delay.
        client_cpu: share of one core that the client needed; near 1 it is the client that is
            measured.
        ttft_ms: time to first token: from sending, connecting included, to the first chunk.
        tpot_ms: time per output token: from first to last chunk of an answer, over its tokens
            after the first.
        itl_ms: inter-token latency: gaps between the chunks of an answer, all answers' together.
        e2e_ms: from sending to the answer's end.
    """

    requests: int
    successful: int
    failures: dict[str, int]
    messages: dict[str, str]
    finish_reasons: dict[str, int]
    duration_s: float
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    uncounted: int
    chunks: int
    tokens_per_chunk: float
    request_throughput: float
    output_throughput: float
    total_throughput: float
    peak_concurrency: int
    latest_start_ms: float
    client_cpu: float
    ttft_ms: Spread | None
    tpot_ms: Spread | None
    itl_ms: Spread | None
    e2e_ms: Spread | None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def make_report(run: Run) -> Report:
    """Add up a run."""
    whole = [record for record in run.records if record.failure is None]
    seconds = run.duration or math.inf
    inputs = sum(record.prompt_tokens for record in whole)
    outputs = sum(record.completion_tokens for record in whole)
    chunks = sum(len(record.times) for record in whole)
    failed = [record for record in run.records if record.failure is not None]
    late = (max(0.0, record.started - record.due) for record in run.records)
    return Report(
        requests=len(run.records),
        successful=len(whole),
        failures=dict(Counter(str(record.failure) for record in failed).most_common()),
        messages={str(one.failure): one.message or "" for one in reversed(failed)},
        finish_reasons=dict(Counter(str(record.finish_reason) for record in whole).most_common()),
        duration_s=run.duration,
        input_tokens=inputs,
        cached_tokens=sum(record.cached_tokens for record in whole),
        output_tokens=outputs,
        uncounted=sum(not record.is_counted for record in whole),
        chunks=chunks,
        tokens_per_chunk=outputs / chunks if chunks else 0.0,
        request_throughput=len(whole) / seconds,
        output_throughput=outputs / seconds,
        total_throughput=(inputs + outputs) / seconds,
        peak_concurrency=peak_concurrency(run.records),
        latest_start_ms=1e3 * max(late, default=0.0),
        client_cpu=run.cpu_seconds / seconds,
        ttft_ms=spread(record.ttft for record in whole),
        tpot_ms=spread(record.tpot for record in whole),
        itl_ms=spread(gap for record in whole for gap in record.gaps),
        e2e_ms=spread(record.latency for record in whole),
    )


def spread(seconds: Iterable[float | None]) -> Spread | None:
    """Of measurements in seconds, those that are None left out; None where there are none."""
    found = sorted(1e3 * value for value in seconds if value is not None)
    if not found:
        return None
    return Spread(
        len(found), math.fsum(found) / len(found),
        *(percentile(found, share) for share in (0.5, 0.9, 0.95, 0.99, 1.0)),
    )  # fmt: skip


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that ``share`` of the ``ordered`` ones do not exceed, between the closest two."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def peak_concurrency(records: Iterable[Record]) -> int:
    """Most requests that were under way at once."""
    changes = [(record.started, 1) for record in records]
    changes += [(record.ended, -1) for record in records]
    now = most = 0
    for _, change in sorted(changes):  # Of equal times the end comes first.
        now += change
        most = max(most, now)
    return most


def save(path: Path, run: Run, facts: dict[str, Any]) -> None:
    """Write ``facts`` and every request's numbers as JSON.

    Raises:
        OSError: the file cannot be written.
    """
    content = {**facts, "records": [record.to_dict(run.start) for record in run.records]}
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
