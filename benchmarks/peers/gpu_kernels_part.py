"""The kernels alone, against the reference and their roof, in a process of its own.

python -m benchmarks.peers.gpu_kernels_part < request.json
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict

import torch

from benchmarks.peers.sections import attempt, say
from dsv2.kernels.timing import Roof


def main() -> None:
    request = json.load(sys.stdin)
    device = torch.device(request["device"])
    tiny = device.type == "cpu"
    if tiny:
        os.environ.setdefault("TRITON_INTERPRET", "1")
    from dsv2.kernels.triton.bench import KernelBench
    from dsv2.kernels.triton.bench_cases import kernel_benches

    bench = KernelBench(device, Roof(**request["roof"]), tiny, quiet=True)

    def measure() -> dict[str, object]:
        told = 0
        for name, run in kernel_benches(bench):
            if name not in request["groups"]:
                continue
            bench.attempt(name, "", "", run)
            for result in bench.results[told:]:
                say(row="kernel", **asdict(result))
            told = len(bench.results)
        return {"failed": len(bench.failed())}

    attempt("kernels", measure)


if __name__ == "__main__":
    main()
