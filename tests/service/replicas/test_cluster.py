from __future__ import annotations

import sys

import pytest

from dsv2.service.replicas.cluster import load_ray, widest
from dsv2.service.settings import SettingsError


@pytest.mark.parametrize(
    ("sizes", "replicas", "threads"),
    [([2], 2, 1), ([16], 4, 4), ([16], 1, 16), ([8, 4], 3, 4), ([8, 6], 2, 6), ([2], 9, 1),
     ([], 1, 1)],
)  # fmt: skip
def test_threads_leave_room_for_every_replica(
    sizes: list[int], replicas: int, threads: int
) -> None:
    assert widest(sizes, replicas) == threads


def test_without_the_extra_the_setting_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match=r"dsv2\[ray\]"):
        load_ray()
