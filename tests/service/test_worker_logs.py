from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from dsv2.service.server import _worker_options
from dsv2.service.settings import ServeSettings
from dsv2.service.web.logs import resolve_format
from dsv2.service.worker.process import WorkerOptions
from tests.service.workers import WORKER, environment, make_options, socket_folder


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_auto_is_text_on_a_terminal_and_json_elsewhere() -> None:
    assert resolve_format("auto", Terminal()) == "text"
    assert resolve_format("auto", io.StringIO()) == "json"
    assert resolve_format("json", Terminal()) == "json"
    assert resolve_format("text", io.StringIO()) == "text"


def test_the_engine_process_is_told_a_format_and_never_auto(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = ServeSettings(log_level="warning")
    for stream, form in ((Terminal(), "text"), (io.StringIO(), "json")):
        monkeypatch.setattr(sys, "stderr", stream)
        options = _worker_options(settings.models[0], settings, tmp_path, "engine")
        sent = msgspec.json.decode(msgspec.json.encode(options), type=WorkerOptions)
        assert (sent.log_level, sent.log_format) == ("warning", form)


def ended(options: WorkerOptions, **more: str) -> tuple[list[bytes], list[str]]:
    """What an engine process reports and logs that cannot start."""
    with subprocess.Popen(
        [sys.executable, "-m", WORKER, msgspec.json.encode(options).decode()],
        env=environment() | more, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, bufsize=0,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        reports, lines = process.stdout.readlines(), process.stderr.read().decode().splitlines()
    assert process.returncode != 0
    return reports, lines


@pytest.mark.parametrize("form", ["json", pytest.param("text", marks=pytest.mark.slow)])
def test_the_engine_process_logs_like_its_parent(form: str, tmp_path: Path) -> None:
    """A model that is not there is told in a line, without a trace."""
    with socket_folder() as folder:
        options = make_options(
            tmp_path / "no such", folder, pull=False, log_level="error", log_format=form
        )
        reports, [line] = ended(options)
    assert json.loads(reports[-1])["phase"] == "failed"
    words = "the engine process ends: model "
    if form == "json":
        entry = json.loads(line)
        assert (entry["level"], entry["logger"]) == ("error", "dsv2.service.worker")
        assert entry["message"].startswith(words) and "no such" in entry["message"]
        assert "trace" not in entry
    else:
        assert "ERROR" in line and words in line and "no such" in line


def test_what_nobody_foresaw_is_logged_with_its_trace(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import dsv2.engine.loading as loading\n"
        "def prepare(*args, **more): raise KeyError('unforeseen')\n"
        "loading.prepare = prepare\n"
    )
    with socket_folder() as folder:
        options = make_options(tmp_path, folder, log_level="error", log_format="json")
        _, [line] = ended(options, PYTHONPATH=str(tmp_path))
    assert "KeyError: 'unforeseen'" in json.loads(line)["trace"]
