"""What the main thread of a page did, frame by frame, from Chromium's own trace."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

CATEGORIES = [
    "devtools.timeline", "disabled-by-default-devtools.timeline",
    "disabled-by-default-devtools.timeline.frame", "v8", "v8.execute",
]  # fmt: skip
SCRIPT = {
    "EvaluateScript", "EventDispatch", "FireAnimationFrame", "FireIdleCallback", "FunctionCall",
    "MajorGC", "MinorGC", "RunMicrotasks", "TimerFire", "v8.callFunction", "v8.run",
}  # fmt: skip
DRAWING = {
    "Commit", "IntersectionObserverController::computeIntersections", "Layerize", "Layout",
    "Paint", "PrePaint", "UpdateLayoutTree",
}  # fmt: skip
FRAME = "BeginMainThreadFrame"


@dataclass(frozen=True)
class Frames:
    """Milliseconds of the main thread's own time in each frame in which anything ran.

    Attributes:
        script: JavaScript: events, timers, microtasks, frames' callbacks, collection of garbage.
        drawing: styles, layout and paint.
    """

    script: list[float]
    drawing: list[float]


def frames_of(trace: bytes) -> Frames:
    """Sums of a trace from one beginning of a frame to the next; nothing where none was drawn."""
    events: list[dict[str, Any]] = json.loads(trace)["traceEvents"]
    threads = {(event["pid"], event["tid"]) for event in events if event["name"] == FRAME}
    if not threads:
        return Frames([], [])
    [main] = threads
    mine = [event for event in events if (event["pid"], event["tid"]) == main]
    begins = sorted(event["ts"] for event in mine if event["name"] == FRAME)
    return Frames(_per_frame(mine, SCRIPT, begins), _per_frame(mine, DRAWING, begins))


def _per_frame(events: list[dict[str, Any]], names: set[str], begins: list[float]) -> list[float]:
    """Outermost events of these names, by the frame in which they begin."""
    spans = sorted(
        (event["ts"], event["ts"] + event["dur"], event.get("tdur", event["dur"]))
        for event in events
        if event["ph"] == "X" and event["name"] in names
    )
    sums, frame, end = [0.0] * (len(begins) + 1), 0, 0.0
    for start, stop, spent in spans:
        if start < end:
            continue  # within the one before
        end = stop
        while frame < len(begins) and begins[frame] <= start:
            frame += 1
        sums[frame] += spent / 1000
    return [one for one in sums if one > 0]


def percentile(values: list[float], share: float) -> float:
    """The value that so large a share does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
