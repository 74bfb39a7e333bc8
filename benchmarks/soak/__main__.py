"""A platform under mixed traffic for hours, with kills, clients that leave and a full disk.

    python -m benchmarks.soak --minutes 120 --seed 7

Fault F66. The platform is that of tests/service/test_kills.py: the application, the store and the
engine process of `dsv2 serve`, each of which is killed by SIGKILL at moments that the seed's dice
choose. For moments of theirs, too, no file of the API process may take another byte, as on a full
disk. In the last third nothing is killed, and memory and file handles must stay flat.

After each event and at the end the books are looked at: all entries sum to zero, every balance is
the sum of its entries and not negative, nothing is held by the dead, what a client was told it used
is what was charged, and a request sent again has had one effect. The greedy answer to one question
is the same all the time. The status is 1 if any of it does not hold; the same seed then throws the
same dice again, though not to the same microsecond.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.soak.platform import Platform
from benchmarks.soak.run import Outcome, Run
from benchmarks.soak.soak import soak


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    words = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    words.formatter_class = argparse.RawDescriptionHelpFormatter
    words.add_argument("--minutes", type=float, default=120.0, help="of traffic")
    words.add_argument("--seed", type=int, default=1, help="of all dice")
    words.add_argument("--model", default="pocket", help="a folder or a name")
    words.add_argument("--threads", type=int, default=1, help="of the engine")
    words.add_argument("--clients", type=int, default=6, help="that ask plainly")
    words.add_argument("--database", default="", help="a URL, empty; by default SQLite")
    words.add_argument("--folder", type=Path, help="for what is written; by default a fresh one")
    words.add_argument("--json", type=Path, help="file for what was found")
    given = words.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="dsv2-soak-") as fresh:
        folder = given.folder or Path(fresh)
        folder.mkdir(parents=True, exist_ok=True)
        outcome = asyncio.run(_soak(given, folder))
        if outcome.problems and (folder / "log").exists():
            text = (folder / "log").read_text(encoding="utf-8", errors="replace")
            print(text[-10_000:], file=sys.stderr)
    print(describe(outcome))
    if given.json is not None:
        given.json.write_text(json.dumps(_plain(outcome), indent=1) + "\n", encoding="utf-8")
    return 1 if outcome.problems else 0


async def _soak(given: argparse.Namespace, folder: Path) -> Outcome:
    with Platform(
        folder, given.model, database=given.database, renew_seconds=1.0, threads=given.threads
    ) as platform:
        return await soak(Run(platform, given.seed, given.clients), given.minutes * 60)


def describe(outcome: Outcome) -> str:
    """What was found, for people."""
    heard = outcome.heard
    lines = [
        f"seed {outcome.seed}, {outcome.seconds:.0f} s",
        f"killed: {_listed(outcome.kills)}; the disk was full {outcome.full} times",
        f"answers told: {len(heard.usage)}; keys: {len(heard.keys)}; deposits: "
        f"{len(heard.deposits)}; refunds: {len(heard.refunds)}",
        f"clients: {_listed(heard.counts)}",
        "requests: " + _listed({" ".join(key): n for key, n in outcome.endings.items()}),
        *(
            f"{one.kind}: {one.memory:.0f} MiB, {one.slope:+.2f} MiB a minute over "
            f"{one.minutes:.1f} minutes; handles {one.handles[0]}, then {one.handles[1]}"
            for one in outcome.trends
        ),
        *(f"PROBLEM: {one}" for one in outcome.problems[:50]),
    ]
    return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _plain(outcome: Outcome) -> dict[str, object]:
    return {
        "seed": outcome.seed,
        "seconds": round(outcome.seconds, 1),
        "kills": dict(outcome.kills),
        "full": outcome.full,
        "answers": len(outcome.heard.usage),
        "clients": dict(outcome.heard.counts),
        "requests": {" ".join(key): count for key, count in outcome.endings.items()},
        "trends": [asdict(one) for one in outcome.trends],
        "problems": outcome.problems,
    }


if __name__ == "__main__":
    sys.exit(main())
