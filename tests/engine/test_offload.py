"""How many layers' experts go to the host."""

from __future__ import annotations

import pytest

from dsv2.checkpoint.releases import config_of
from dsv2.engine.offload import memory_limits, parse_size, plan_host_layers
from dsv2.engine.plan import DoesNotFitError
from dsv2.engine.weight_sizes import gpu_bytes

GIB = 2**30


def test_sizes_as_accelerate_writes_them() -> None:
    assert parse_size("10GiB") == 10 * GIB
    assert parse_size("1.5 GB") == 1_500_000_000
    assert parse_size("7") == parse_size(7) == 7
    for wrong in ("ten", "10 TiB", "-1GB", ""):
        with pytest.raises(ValueError, match=r"allowed are a number and one of B"):
            parse_size(wrong)


def test_a_limit_only_takes_away() -> None:
    free = {"cuda": 80 * GIB, "cpu": 100 * GIB}
    assert memory_limits(None, free) == free
    assert memory_limits({"cuda": "10GiB", "cpu": "1TB".replace("T", "000G")}, free) == {
        "cuda": 10 * GIB,
        "cpu": 100 * GIB,
    }
    with pytest.raises(ValueError, match="max_memory has 'disk', allowed are cuda, cpu"):
        memory_limits({"disk": 1}, free)


@pytest.mark.parametrize("weights", ["bfloat16", "fp8", "int8", "int4"])
def test_as_few_layers_as_the_device_allows(weights: str) -> None:
    config = config_of("v2-lite")
    rest, each = gpu_bytes(config, weights)
    assert 0.9 < (rest + 26 * each) / (15.7e9 * {"bfloat16": 2, "int4": 0.52}.get(weights, 1)) < 1.1
    reserved, cpu = 2 * GIB, 100 * GIB
    whole = int((rest + 26 * each + reserved) / 0.95) + 2
    layers = [
        plan_host_layers(config, weights, {"cuda": whole - step * each, "cpu": cpu}, reserved)
        for step in range(4)
    ]
    assert layers == [0, 1, 2, 3]


def test_what_fits_nowhere_is_refused() -> None:
    config = config_of("v2")
    with pytest.raises(DoesNotFitError, match="without any routed expert the weights take"):
        plan_host_layers(config, "int4", {"cuda": GIB, "cpu": 500 * GIB}, GIB)
    with pytest.raises(DoesNotFitError, match="ask for fewer bits"):
        plan_host_layers(config, "bfloat16", {"cuda": 80 * GIB, "cpu": 100 * GIB}, GIB)
