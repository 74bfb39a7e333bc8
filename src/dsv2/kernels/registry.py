"""Which backend computes an op: a table, filled by ``@implements`` and asked by name.

``auto`` takes the first backend of :data:`ORDER` that has the op for the device; a backend that is
asked for by name runs or raises.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

ORDER: dict[str, tuple[str, ...]] = {
    "cpu": ("cpu", "torch", "reference"),
    "cuda": ("triton", "torch", "reference"),
    "meta": ("reference",),
}
"""For each device type, the backends that ``auto`` tries, best first."""

_MODULES = {
    "reference": (
        "dsv2.kernels.reference",
        "dsv2.kernels.composites",
        "dsv2.kernels.reference_executor",
    ),
    "cpu": ("dsv2.kernels.cpu",),
    "torch": ("dsv2.kernels.library",),
    "triton": (
        "dsv2.kernels.triton.mla_decode",
        "dsv2.kernels.triton.mla_prefill_grad",
        "dsv2.kernels.triton.executor",
        "dsv2.kernels.triton.adamw",
        "dsv2.kernels.triton.cross_entropy",
        "dsv2.kernels.triton.experts_train",
        "dsv2.kernels.triton.greedy",
        "dsv2.kernels.triton.mla_train",
        "dsv2.kernels.triton.rms_norm",
        "dsv2.kernels.triton.swiglu",
    ),
    "flashinfer": ("dsv2.kernels.flashinfer",),
}
_NEEDS = {"triton": "triton", "flashinfer": "flashinfer"}
"""The package that a backend stands on; a torch without CUDA comes without Triton."""
_TABLE: dict[tuple[str, str], tuple[Callable[..., Any], frozenset[str]]] = {}


class BackendError(ValueError):
    """No such backend, or it has no version of the op for the device."""


def implements(
    op: str, backend: str, devices: tuple[str, ...] = ("cpu", "cuda", "meta")
) -> Callable[[Kernel], Kernel]:
    """Enter the decorated function as ``backend``'s version of ``op`` on ``devices``.

    Raises:
        BackendError: it has one already.
    """

    def enter(kernel: Kernel) -> Kernel:
        if (op, backend) in _TABLE:
            raise BackendError(f"backend {backend!r} has a version of op {op!r} already")
        _TABLE[op, backend] = (kernel, frozenset(devices))
        return kernel

    return enter


@cache
def _load(backend: str) -> bool:
    """Fill the table with a backend's ops; false where the package it needs is not installed."""
    if backend in _NEEDS and importlib.util.find_spec(_NEEDS[backend]) is None:
        return False
    for module in _MODULES[backend]:
        importlib.import_module(module)
    return True


def backends() -> tuple[str, ...]:
    """The names that may be asked for, ``auto`` first."""
    return ("auto", *_MODULES)


@cache
def chosen(op: str, backend: str = "auto", device: str = "cpu") -> str:
    """The name of the backend that computes ``op`` on ``device``.

    Raises:
        BackendError: the backend is unknown, or has no such op on this device.
    """
    if backend not in backends():
        raise BackendError(f"backend {backend!r} is unknown, allowed are {', '.join(backends())}")
    if backend == "auto" and device not in ORDER:
        raise BackendError(f"device {device!r} has no backends, known are {', '.join(ORDER)}")
    candidates = ORDER[device] if backend == "auto" else (backend,)
    for name in candidates:
        if not _load(name) and name == backend:
            raise BackendError(f"backend {name!r} needs the package {_NEEDS[name]!r}")
        if (op, name) in _TABLE and device in _TABLE[op, name][1]:
            return name
    raise BackendError(f"backend {backend!r} has no op {op!r} for device {device!r}")


@cache
def select(op: str, backend: str = "auto", device: str = "cpu") -> Callable[..., Any]:
    """The function that computes ``op`` on ``device``; errors as :func:`chosen`."""
    return _TABLE[op, chosen(op, backend, device)][0]


def available(backend: str) -> bool:
    """Whether the package that ``backend`` needs is installed."""
    return _load(backend)


def has(op: str, backend: str) -> bool:
    """Whether ``backend`` has its own version of ``op``."""
    _load(backend)
    return (op, backend) in _TABLE
