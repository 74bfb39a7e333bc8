"""What the README shows is run as it stands there."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from tests.program import dsv2

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PROGRAMS = [
    code
    for code in re.findall(r"```python\n(.*?)```", README, re.S)
    # tests/hf runs those for transformers, tests/service those that need a server
    if "import dsv2.hf" not in code and "http://" not in code
]
USE = README.split("## Use")[1].split("## ")[0]
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", USE, re.S)
    for line in block.splitlines()
    if "dsv2 " in line
]


def test_there_is_something_to_run() -> None:
    assert len(PROGRAMS) == 1
    assert len(COMMANDS) == 4
    start = re.search(r"## Start.*?```bash\n(.*?)```", README, re.S)
    assert start is not None
    assert [line.split("#")[0].strip() for line in start[1].splitlines()] == [
        "make serve", "make test",
    ]  # fmt: skip


@pytest.mark.parametrize("code", PROGRAMS)
def test_programs_run(code: str) -> None:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "README", "exec"), {})
    assert "Multi-head Latent Attention" in output.getvalue()


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_run(line: str) -> None:
    before, _, command = line.rpartition("|")
    stdin = " ".join(shlex.split(before)[1:]) if before else "/exit\n"
    name, *arguments = shlex.split(command)
    assert name == "dsv2"
    done = dsv2(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
