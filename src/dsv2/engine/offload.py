"""How many layers' experts stay in the host's memory: arithmetic on a limit of the device's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dsv2.engine.plan import MARGIN, DoesNotFitError, size_text
from dsv2.engine.weight_sizes import gpu_bytes, moe_layers
from dsv2.model.config import ModelConfig

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_PLACES = ("cuda", "cpu")


def parse_size(text: str | int) -> int:
    """Bytes of a size as accelerate writes it: ``10GiB``, ``500MB``, or a number.

    Raises:
        ValueError: it is not a size.
    """
    if isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text.strip())
    unit = match[2].upper() or "B" if match else ""
    if match is None or unit not in _UNITS:
        raise ValueError(
            f"size is {text!r}, allowed are a number and one of B, KB .. GB, KiB .. GiB"
        )
    return int(float(match[1]) * _UNITS[unit])


def memory_limits(
    max_memory: Mapping[str, str | int] | None, free: Mapping[str, int]
) -> dict[str, int]:
    """Bytes that may be taken of each place: what is free, or less where ``max_memory`` says so.

    Args:
        max_memory: sizes by ``cuda`` and ``cpu``.
        free: bytes by the same names.

    Raises:
        ValueError: a place or size is unknown.
    """
    limits = dict(free)
    for place, size in (max_memory or {}).items():
        if place not in free:
            raise ValueError(f"max_memory has {place!r}, allowed are {', '.join(_PLACES)}")
        limits[place] = min(limits[place], parse_size(size))
    return limits


def plan_host_layers(
    config: ModelConfig, weights: str, limits: Mapping[str, int], reserved: int
) -> int:
    """Layers whose routed experts go to the host: as few as the device's limit allows.

    Args:
        config: the model's.
        weights: their format.
        limits: bytes by place, of :func:`memory_limits`.
        reserved: bytes of the device for cache and computing.

    Raises:
        DoesNotFitError: the device does not hold the rest, or the host not the experts.
    """
    rest, each = gpu_bytes(config, weights)
    moe = moe_layers(config)
    room = int(limits["cuda"] * (1 - MARGIN)) - reserved - rest
    if room < 0:
        raise DoesNotFitError(
            f"without any routed expert the weights take {size_text(rest)} as {weights} and "
            f"{size_text(reserved)} are for cache and computing; cuda has "
            f"{size_text(limits['cuda'])}, of which {MARGIN:.0%} stay free"
        )
    away = max(0, moe - room // each) if each else 0
    if away * each > limits["cpu"] * (1 - MARGIN):
        raise DoesNotFitError(
            f"the experts of {away} layers take {size_text(away * each)} as {weights}, cpu has "
            f"{size_text(limits['cpu'])}, of which {MARGIN:.0%} stay free; ask for fewer bits"
        )
    return away
