"""Every GPU kernel against the reference, its time, and its share of what the device can do.

    PYTHONPATH=src python benchmarks/gpu_kernels.py --csv gpu_kernels.csv          # three minutes
    PYTHONPATH=src python benchmarks/gpu_kernels.py --tune --csv gpu_tiles.csv     # other tiles too

The roofs are measured first in the same run: a copy of 2 GiB and a bf16 product of side 8192. Times
are those of one call inside a CUDA graph of many, over as many sets of inputs as it takes that none
is still in the L2 cache. A kernel that fails prints its traceback and the rest goes on; the exit
status tells. Without a GPU, ``--tiny`` runs it all in Triton's interpreter, to try the script.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")

import triton  # noqa: E402

from dsv2.kernels.timing import measure_device  # noqa: E402
from dsv2.kernels.triton.bench import KernelBench, Result  # noqa: E402
from dsv2.kernels.triton.bench_cases import GROUPS, run_kernel_benches  # noqa: E402


def write_csv(path: Path, bench: KernelBench) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "interpreter"
    about = {
        "device": name, "torch": torch.__version__, "triton": triton.__version__,
        "commit": commit.stdout.strip(), "date": time.strftime("%Y-%m-%d"),
        "roof_gigabytes_s": round(bench.roof.read / 1e9),
        "roof_teraflops": round(bench.roof.multiply / 1e12, 1),
    }  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Result)] + list(about))
        writer.writeheader()
        writer.writerows(asdict(result) | about for result in bench.results)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--csv", type=Path, help="write the results there")
    parser.add_argument("--tune", action="store_true", help="time other tiles as well")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--tiny", action="store_true", help="shapes for Triton's interpreter")
    chosen = parser.parse_args(arguments)
    if DEVICE.type == "cpu" and not chosen.tiny:
        parser.error("there is no GPU; --tiny tries the script in Triton's interpreter")
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
    roof = measure_device(DEVICE, dtype, tiny=chosen.tiny)
    print(f"roofs: copy {roof.read / 1e12:.2f} TB/s, product {roof.multiply / 1e12:.0f} TFLOP/s")
    bench = KernelBench(DEVICE, roof, chosen.tiny, chosen.tune)
    began = time.perf_counter()
    try:
        run_kernel_benches(bench, tuple(chosen.only))
    finally:
        if chosen.csv:
            write_csv(chosen.csv, bench)
    print(f"[{time.perf_counter() - began:.0f} s]")
    failed = bench.failed()
    for one in failed:
        print("FAILED", one.kernel, one.case, one.variant, one.failure or f"error {one.error:.1e}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
