"""Memory and cores within the limits of a container, on trees as the kernel shows them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from dsv2.machine import available_bytes, available_threads

GB = 1 << 30
FREE, CORES = 64 * GB, 64


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(CORES))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine of 64 GB free and no container."""
    put(
        tmp_path,
        "proc/meminfo",
        f"MemTotal: {2 * FREE // 1024} kB\nMemAvailable: {FREE // 1024} kB\n",
    )
    return tmp_path


def put(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def memory_v2(root: Path, group: str, limit: str, used: int, inactive: int, active: int) -> None:
    base = f"sys/fs/cgroup/{group}"
    put(root, f"{base}/memory.max", f"{limit}\n")
    put(root, f"{base}/memory.current", f"{used}\n")
    stat = f"anon 1\nfile 2\ninactive_file {inactive}\nactive_file {active}\n"
    put(root, f"{base}/memory.stat", stat)


def memory_v1(root: Path, group: str, limit: int, used: int, inactive: int, active: int) -> None:
    base = f"sys/fs/cgroup/memory/{group}"
    put(root, f"{base}/memory.limit_in_bytes", f"{limit}\n")
    put(root, f"{base}/memory.usage_in_bytes", f"{used}\n")
    # Without "total_" they are of the group alone, without those inside.
    stat = f"inactive_file 7\nactive_file 7\ntotal_inactive_file {inactive}\n"
    put(root, f"{base}/memory.stat", f"{stat}total_active_file {active}\n")


def both(root: Path) -> tuple[int, int]:
    return available_bytes(root), available_threads(root)


def test_without_groups_the_machine_is_all_there_is(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert both(root) == (FREE, CORES)
    put(root, "proc/self/cgroup", "0::/\n")
    assert both(root) == (FREE, CORES)
    put(root, "proc/self/cgroup", "0::/user.slice/session-1.scope\n")
    assert both(root) == (FREE, CORES)
    assert not caplog.records


def test_a_container_of_version_2_has_its_limits_at_the_mount(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/\n")
    memory_v2(root, "", str(12 * GB), 5 * GB, 3 * GB, 1 * GB)
    put(root, "sys/fs/cgroup/cpu.max", "200000 100000\n")
    assert both(root) == (11 * GB, 2)


def test_the_tightest_group_counts_wherever_it_is(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/outer/inner\n")
    memory_v2(root, "outer/inner", str(30 * GB), 2 * GB, 0, 0)
    memory_v2(root, "outer", str(20 * GB), 10 * GB, 1 * GB, 2 * GB)
    put(root, "sys/fs/cgroup/outer/inner/cpu.max", "800000 100000\n")
    put(root, "sys/fs/cgroup/outer/cpu.max", "150000 50000\n")
    assert both(root) == (13 * GB, 3)
    memory_v2(root, "outer/inner", str(6 * GB), 2 * GB, 0, 0)
    put(root, "sys/fs/cgroup/outer/inner/cpu.max", "100000 100000\n")
    assert both(root) == (4 * GB, 1)


def test_a_sibling_of_the_group_does_not_count(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/outer/inner\n")
    memory_v2(root, "outer/other", str(GB), 0, 0, 0)
    put(root, "sys/fs/cgroup/outer/other/cpu.max", "100000 100000\n")
    assert both(root) == (FREE, CORES)


def test_max_is_no_limit(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(root, "proc/self/cgroup", "0::/one\n")
    memory_v2(root, "one", "max", 5 * GB, 0, 0)
    put(root, "sys/fs/cgroup/one/cpu.max", "max 100000\n")
    assert both(root) == (FREE, CORES)
    assert not caplog.records


@pytest.mark.parametrize("shown", ["docker/1f", ""])
def test_version_1_by_controller(root: Path, shown: str) -> None:
    """The host's path is told; the mount may be the host's, or begin at the container."""
    listed = "5:memory:/docker/1f\n4:cpu,cpuacct:/docker/1f\n1:name=systemd:/docker/1f\n0::/\n"
    put(root, "proc/self/cgroup", listed)
    if shown:
        memory_v1(root, "", (1 << 63) - 4096, 40 * GB, GB, GB)
        put(root, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
        put(root, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    memory_v1(root, shown, 12 * GB, 8 * GB, GB, 2 * GB)
    put(root, f"sys/fs/cgroup/cpu/{shown}/cpu.cfs_quota_us", "200000\n")
    put(root, f"sys/fs/cgroup/cpu/{shown}/cpu.cfs_period_us", "100000\n")
    assert both(root) == (7 * GB, 2)


def test_no_limit_of_version_1(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(root, "proc/self/cgroup", "4:memory:/\n1:cpu:/\n0::/\n")
    memory_v1(root, "", (1 << 63) - 4096, 40 * GB, GB, GB)
    put(root, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    put(root, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert both(root) == (FREE, CORES)
    assert not caplog.records


@pytest.mark.parametrize(("quota", "threads"), [(1_000, 1), (100_000, 1), (150_000, 2)])
def test_parts_of_a_cpu_are_rounded_up(root: Path, quota: int, threads: int) -> None:
    put(root, "proc/self/cgroup", "0::/\n")
    put(root, "sys/fs/cgroup/cpu.max", f"{quota} 100000\n")
    assert available_threads(root) == threads


def test_a_wide_limit_leaves_the_machine_as_it_is(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/\n")
    memory_v2(root, "", str(4 * FREE), GB, 0, 0)
    put(root, "sys/fs/cgroup/cpu.max", f"{2 * CORES * 100_000} 100000\n")
    assert both(root) == (FREE, CORES)


def test_a_group_beyond_its_limit_has_nothing_left(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/\n")
    memory_v2(root, "", str(GB), 2 * GB, 0, 0)
    assert available_bytes(root) == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("memory.max", "plenty\n"),
        ("memory.current", "\n"),
        ("memory.stat", "inactive_file 1\n"),
        ("memory.stat", "nothing of the kind\n"),
        ("memory.current", None),
    ],
)
def test_a_limit_that_cannot_be_read_is_told_and_the_others_hold(
    root: Path, caplog: pytest.LogCaptureFixture, name: str, text: str | None
) -> None:
    put(root, "proc/self/cgroup", "0::/outer/inner\n")
    memory_v2(root, "outer", str(20 * GB), 10 * GB, 0, 0)
    memory_v2(root, "outer/inner", str(5 * GB), GB, 0, 0)
    broken = root / "sys/fs/cgroup/outer/inner" / name
    if text is None:
        broken.unlink()
    else:
        broken.write_text(text)
    assert available_bytes(root) == 10 * GB
    [record] = caplog.records
    assert (record.levelno, record.name) == (logging.WARNING, "dsv2.machine")
    assert str(broken.parent) in record.getMessage() and "memory" in record.getMessage()


@pytest.mark.parametrize("text", ["100000\n", "many 100000\n", "100000 0\n"])
def test_a_quota_that_cannot_be_read_is_told(
    root: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    put(root, "proc/self/cgroup", "0::/\n")
    put(root, "sys/fs/cgroup/cpu.max", text)
    assert available_threads(root) == CORES
    assert len(caplog.records) == 1


def test_a_list_of_groups_that_cannot_be_read_is_told(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(root, "proc/self/cgroup", "what is this\n")
    assert both(root) == (FREE, CORES)
    assert len(caplog.records) == 2
