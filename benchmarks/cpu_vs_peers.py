"""Speed on a CPU beside llama.cpp, ik_llama.cpp, transformers and vLLM: one table from one run.

    python -m benchmarks.cpu_vs_peers --files FOLDER \\
        --llama-cpp FOLDER --ik-llama-cpp FOLDER --transformers PYTHON --vllm PYTHON

All engines get the shape of V2-Lite with random weights: ours in our formats, llama.cpp and
ik_llama.cpp in Q4_0 and Q8_0, transformers and vLLM the first six layers in bf16. In a round every
engine computes all of its rows once, in processes of its own, and no two at a time; rounds begin
with another engine each, and the figures are medians over rounds. The peers' programs are not built
here: --llama-cpp and --ik-llama-cpp name folders that hold ``llama-bench`` and
``llama-batched-bench``, --transformers and --vllm interpreters of environments that have them. A
peer that is not named has no column; one that fails is said to.

Weights in files (8 GB of our 4-bit, 9 and 17 GB for llama.cpp) are written to --files once and
kept. Results go to benchmarks/results/cpu_vs_peers.csv and docs/img/cpu_vs_peers.png, unless
--quick, --layers or --model make them something else: then --csv and --image say where, if at all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.peers import ours
from benchmarks.peers.llama import IK_LLAMA_CPP, LLAMA_CPP, Llama
from benchmarks.peers.machine import ROOT, look
from benchmarks.peers.report import Line, compare, draw, failures, read_csv, table, write_csv
from benchmarks.peers.torch_peer import TorchPeer
from benchmarks.peers.work import Failure, Measure, Measured, Row, Setting, chosen
from benchmarks.peers.work import rows as all_rows
from dsv2.cli.info import find_config
from dsv2.machine import available_threads

OWN = "dsv2"
CSV = ROOT / "benchmarks" / "results" / "cpu_vs_peers.csv"
IMAGE = ROOT / "docs" / "img" / "cpu_vs_peers.png"


def _place(text: str) -> Path:
    """Absolute, since programs run elsewhere; links stay, since an environment is one."""
    return Path(text).absolute()


def parser() -> argparse.ArgumentParser:
    own = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu_vs_peers", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    own.add_argument("--files", type=_place, required=True, help="folder for weights")
    own.add_argument("--llama-cpp", type=_place, help="folder of llama.cpp's programs")
    own.add_argument("--ik-llama-cpp", type=_place, help="folder of ik_llama.cpp's programs")
    own.add_argument("--transformers", type=_place, help="interpreter that has transformers")
    own.add_argument("--vllm", type=_place, help="interpreter that has vLLM for CPUs")
    own.add_argument("--rows", help="comma-separated keys, or what stands before their '-'")
    own.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="ENGINE=ROWS",
        help="rows that one engine alone is kept to: the others would take it too long",
    )
    own.add_argument("--rounds", type=int, default=5)
    own.add_argument("--threads", type=int, default=available_threads())
    own.add_argument("--quick", action="store_true", help="one round of a sixteenth of the lengths")
    own.add_argument("--layers", type=int, help="of the model, for trying the script")
    own.add_argument("--model", default="v2-lite", help="a release, or a folder with config.json")
    own.add_argument("--csv", type=Path)
    own.add_argument("--image", type=Path)
    return own


def engines(options: argparse.Namespace) -> dict[str, Measure]:
    """Ours and the peers that were named."""
    found: dict[str, Measure] = {OWN: ours.measure}
    if options.llama_cpp is not None:
        found["llama.cpp"] = Llama(options.llama_cpp, LLAMA_CPP)
    if options.ik_llama_cpp is not None:
        found["ik_llama.cpp"] = Llama(options.ik_llama_cpp, IK_LLAMA_CPP)
    if options.transformers is not None:
        found["transformers"] = TorchPeer("transformers", options.transformers)
    if options.vllm is not None:
        found["vllm"] = TorchPeer("vllm", options.vllm)
    return found


def kept_to(words: Sequence[str], names: Sequence[str]) -> dict[str, set[str]]:
    """Keys of the rows of the engines that ``--only`` names.

    Raises:
        ValueError: an engine does not take part, or a row is unknown.
    """
    keys: dict[str, set[str]] = {}
    for word in words:
        name, _, rows = word.partition("=")
        if name not in names:
            raise ValueError(f"--only {word}: engine {name!r}, allowed are {', '.join(names)}")
        keys[name] = {row.key for row in chosen(rows, quick=False, layers=None)}
    return keys


def measure(
    found: Mapping[str, Measure],
    rows: Mapping[str, Sequence[Row]],
    setting: Setting,
    rounds: int,
    say: Console,
) -> Iterator[dict[str, dict[str, list[Measured | Failure]]]]:
    """Every engine once per round, each round beginning with the next one; all there is so far."""
    results: dict[str, dict[str, list[Measured | Failure]]] = {name: {} for name in found}
    names = list(found)
    for number in range(rounds):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            start = time.perf_counter()
            for key, outcome in found[name](rows[name], setting).items():
                results[name].setdefault(key, []).append(outcome)
            spent = time.perf_counter() - start
            say.print(f"round {number + 1} of {rounds}: {name}, {spent:.0f} s", highlight=False)
        yield results


def keep_shape(files: Path, model: str) -> Path:
    """The folder of the model's ``config.json``, which is that of all weights in ``files``.

    Raises:
        ValueError: ``files`` has weights of another shape.
    """
    shape = files / "shape"
    shape.mkdir(parents=True, exist_ok=True)
    path, content = shape / "config.json", json.dumps(find_config(model).to_published())
    if path.exists() and path.read_text("utf-8") != content:
        raise ValueError(f"--files {files} has weights of another model than {model}")
    path.write_text(content, encoding="utf-8")
    return shape


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    if options.rounds < 1 or options.threads < 1:
        raise ValueError("--rounds and --threads must be at least 1")
    rows = chosen(options.rows, options.quick, options.layers)
    usual = not options.quick and options.layers is None and options.model == "v2-lite"
    setting = Setting(keep_shape(options.files, options.model), options.files, options.threads)
    say = Console(stderr=True)
    machine = look(options.threads)
    found = engines(options)
    keys = kept_to(options.only, list(found))
    own_rows = {
        name: [row for row in rows if name not in keys or row.key in keys[name]] for name in found
    }
    rounds = 1 if options.quick else options.rounds
    target = options.csv or (CSV if usual else None)
    lines: list[Line] = []
    for results in measure(found, own_rows, setting, rounds, say):
        lines = compare(rows, results, OWN)
        if target is not None:
            write_csv(target, lines, machine, OWN)  # a run of hours may be broken off
    Console(width=None if sys.stdout.isatty() else 200).print(table(lines, machine, list(found)))
    for sentence in failures(lines, OWN):
        print(sentence)
    if (picture := options.image or (IMAGE if usual else None)) is not None:
        # Rows of other runs stand beside those of this one.
        whole = usual and target is not None
        shown = read_csv(target, all_rows(), machine, OWN) if whole else lines
        draw(picture, shown, machine)
    return int(any(line.own.failure for line in lines))


if __name__ == "__main__":
    sys.exit(main())
