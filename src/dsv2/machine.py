"""What this process may take of the machine: memory and cores, within its container's limits.

A container's limits are those of control groups, version 1 or 2: of the process's own group and of
every group around it that can be seen from here. A limit whose file is not there is none. One that
is there and cannot be read or understood is left aside too, with a warning in the log: the operator
learns of it, and the start goes on with what else is known.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("dsv2.machine")

_ROOT = Path("/")
_MEMORY_FILES = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)
"""Limit, usage and the entries of ``memory.stat`` for pages of files, by version; all with the
groups inside."""


def available_bytes(root: Path = _ROOT) -> int:
    """Memory that may be taken without swapping and without passing a container's limit.

    Args:
        root: of the file system that tells.
    """
    return min([_machine_bytes(root), *_limits("memory", root, _memory_left)])


def available_threads(root: Path = _ROOT) -> int:
    """Cores this process may use: those it may run on, or as many as its container has time for.

    Args:
        root: of the file system that tells.
    """
    return max(min([len(os.sched_getaffinity(0)), *_limits("cpu", root, _cpus)]), 1)


def _machine_bytes(root: Path) -> int:
    try:
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux: the line below knows the physical memory, which is the best there is
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _limits(controller: str, root: Path, read: Callable[[Path], int | None]) -> list[int]:
    """What each group around this process leaves to it."""
    limits = []
    for group in _groups(controller, root):
        try:
            limit = read(group)
        except (OSError, ValueError, LookupError, ArithmeticError) as error:
            log.warning("%s: its limit of %s is left aside: %r", group, controller, error)
            continue
        if limit is not None:
            limits.append(limit)
    return limits


def _groups(controller: str, root: Path) -> list[Path]:
    """The folders of this process's group and of those around it.

    The mount's own folder is always one: a container's limits lie there, whether its path is ``/``
    or one of the host's that the mount does not show.
    """
    source, groups = root / "proc/self/cgroup", list[Path]()
    try:
        for line in (_text(source) or "").splitlines():
            _, controllers, path = line.split(":", 2)
            mount = root / "sys/fs/cgroup"
            if controllers:  # version 1; where controllers share a mount, each has a link to it
                if controller not in controllers.split(","):
                    continue
                mount /= controller
            inner = Path(path.lstrip("/"))
            groups += [mount / part for part in (inner, *inner.parents)]
    except (OSError, ValueError) as error:
        log.warning("%s: limits of %s are left aside: %r", source, controller, error)
    return groups


def _memory_left(group: Path) -> int | None:
    """Bytes up to a group's limit; None for no limit.

    Pages of files count as free: mapped weights are such, and the kernel takes them back.
    """
    for limit, usage, pages in _MEMORY_FILES:
        allowed = _text(group / limit)
        if allowed is None or allowed == "max":
            continue
        used = int((group / usage).read_text(encoding="ascii"))
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        found = dict(line.split() for line in lines)
        return max(int(allowed) - used + sum(int(found[name]) for name in pages), 0)
    return None


def _cpus(group: Path) -> int | None:
    """CPUs whose time a group may take, rounded up; None for no limit."""
    both = _text(group / "cpu.max")
    if both is None:
        quota = _text(group / "cpu.cfs_quota_us")
        if quota is None:
            return None
        both = f"{quota} {(group / 'cpu.cfs_period_us').read_text(encoding='ascii')}"
    quota, period = both.split()
    if quota in ("max", "-1"):
        return None
    return -(-int(quota) // int(period))


def _text(path: Path) -> str | None:
    """What a file says; None where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except FileNotFoundError:
        return None
