"""``dsv2 info`` prints the paper's numbers without any weights."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from dsv2.cli.main import app

PAPER = {
    "v2": (235_741_434_880, 21_375_800_320, 20_851_512_320, 34_560),
    "v2-lite": (15_706_484_224, 2_661_150_208, 2_451_435_008, 15_552),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_numbers(name: str) -> None:
    result = CliRunner().invoke(app, ["info", name, "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    own = facts["this"]
    assert (
        own["total_parameters"],
        own["active_parameters"],
        own["active_parameters_without_embedding"],
        own["cache_elements_per_token"],
    ) == PAPER[name]
    assert facts["dense"]["cache_elements_per_token"] == 194_560
    hours = facts["published_gpu_hours_per_trillion_tokens"]
    assert round(100 * hours["saving"], 1) == 42.5


def test_the_cache_claim_with_and_without_its_six_bits() -> None:
    result = CliRunner().invoke(app, ["info", "v2", "--json"])
    saved = json.loads(result.stdout)["cache_saving"]
    assert round(100 * saved["6-bit_against_bf16"], 1) == 93.3
    assert round(100 * saved["by_elements"], 1) == 82.2


def test_the_bytes_of_every_cache_with_its_scales() -> None:
    result = CliRunner().invoke(app, ["info", "v2-lite", "--json"])
    stored = json.loads(result.stdout)["stored_cache_bytes_per_token"]
    # Per layer: 576 numbers of 2 bytes; 576 codes of 8 or 6 bits; a scale for every 128 or fewer.
    assert stored["bfloat16"] == 27 * 576 * 2
    assert stored["int8"] == 27 * (576 + 5)
    assert stored["int6"] == 27 * (576 * 6 // 8 + 5)


def test_the_table_shows_them() -> None:
    result = CliRunner().invoke(app, ["info", "v2"])
    for kind in ("int8", "int6"):
        assert f"stored as {kind}" in result.stdout
    for shown in ("235,741,434,880", "34,560", "93.3%", "82.2%", "42.5%"):
        assert shown in result.stdout


def test_a_wrong_name_is_one_line_and_exit_code_2() -> None:
    command = [sys.executable, "-m", "dsv2", "info", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'nonsense'" in done.stderr
    assert "v2-lite" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_is_fast_and_needs_no_torch() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import dsv2.cli.main as m; print(m.COMMANDS);"
    )
    code += "assert 'torch' not in sys.modules; assert time.perf_counter() - t < 2"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    best = min(_help_seconds() for _ in range(5))
    assert best < 0.6  # 0.12 s alone; the suite shares its cores


def _help_seconds() -> float:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "dsv2", "--help"], capture_output=True, text=True, check=True
    )
    assert "info" in done.stdout
    return time.perf_counter() - start
