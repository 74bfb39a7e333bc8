from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dsv2.checkpoint.hub import HubError, pull_verified, repository_of
from tests.checkpoint.hub_server import Hub, serve
from tests.program import dsv2

REPOSITORY = "someone/tiny-v2"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hub(tiny_folder: Path, tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "served"
    folder.mkdir()
    for path in tiny_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with serve(REPOSITORY, folder) as running:
        yield running


@pytest.fixture
def run(tmp_path: Path, hub: Hub) -> Run:
    def call(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
            "DSV2_HOME": str(tmp_path / "dsv2"), "HF_HUB_DISABLE_XET": "1",
            "MODELSCOPE_ENDPOINT": hub.url, "MODELSCOPE_CACHE": str(tmp_path / "modelscope"),
        } | changes  # fmt: skip
        return dsv2(*arguments, environment=environment)

    return call


@pytest.mark.slow
def test_pull_list_show_verify_run_rm(run: Run, hub: Hub) -> None:
    pulled = run("pull", REPOSITORY)
    assert pulled.returncode == 0, pulled.stderr
    folder = Path(pulled.stdout.strip().splitlines()[-1])
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"modeling_evil.py", "pytorch_model.bin"}
    assert "all files are whole" in pulled.stderr
    listed = json.loads(run("list", "--json").stdout)
    assert [row["model"] for row in listed] == ["pocket", REPOSITORY]
    assert json.loads(run("show", REPOSITORY).stdout)["config"]["model_type"] == "deepseek_v2"
    answer = run("run", REPOSITORY, "hello", "--max-tokens", "3", "--json", HF_HUB_OFFLINE="1")
    assert json.loads(answer.stdout)["completion_tokens"] <= 3
    before = len(hub.requests)
    assert run("pull", REPOSITORY).returncode == 0
    assert not any(
        method == "GET" and path.endswith(".safetensors")
        for method, path, _ in hub.requests[before:]
    )
    removed = run("rm", REPOSITORY, "--yes")
    assert removed.returncode == 0, removed.stderr
    assert not folder.exists()
    gone = run("run", REPOSITORY, "hello", "--no-pull")
    assert gone.returncode == 2
    assert f"fetch it with: dsv2 pull {REPOSITORY}" in gone.stderr


@pytest.mark.slow
def test_a_pull_that_broke_off_goes_on_where_it_stopped(run: Run, hub: Hub) -> None:
    # Larger than the pieces of 10 MB that the client writes, or there is nothing to go on from.
    content = os.urandom(24_000_000)
    (hub.folder / "more.safetensors").write_bytes(content)
    hub.cut_at = ("more.safetensors", 15_000_000)
    pulled = run("pull", REPOSITORY)
    if pulled.returncode != 0:
        assert "goes on from there" in pulled.stderr
        pulled = run("pull", REPOSITORY)
    assert pulled.returncode == 0, pulled.stderr
    folder = Path(pulled.stdout.strip().splitlines()[-1])
    assert (folder / "more.safetensors").read_bytes() == content
    ranges = [found for _, path, found in hub.requests if path.endswith("more.safetensors")]
    assert any(found is not None and not found.startswith("bytes=0-") for found in ranges)


@pytest.mark.slow
def test_modelscope_is_pulled_verified_and_removed_alike(run: Run, hub: Hub) -> None:
    pulled = run("pull", REPOSITORY, "--hub", "modelscope")
    assert pulled.returncode == 0, pulled.stderr
    folder = Path(pulled.stdout.strip().splitlines()[-1])
    assert not (folder / "modeling_evil.py").exists()
    listed = json.loads(run("list", "--json").stdout)
    assert [(row["model"], row["hub"]) for row in listed[1:]] == [(REPOSITORY, "modelscope")]
    answer = run("run", REPOSITORY, "hello", "--max-tokens", "3", "--json")
    assert json.loads(answer.stdout)["completion_tokens"] <= 3
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    assert "damaged files: model.safetensors" in run("verify", REPOSITORY).stderr
    assert run("rm", REPOSITORY, "--yes").returncode == 0
    assert not folder.exists()
    missing = run("pull", "someone/else", "--hub", "modelscope")
    assert missing.returncode == 2
    assert "does not give someone/else" in missing.stderr


def test_damage_is_found_by_checksum(run: Run, hub: Hub) -> None:
    hub.damage = "model.safetensors"
    pulled = run("pull", REPOSITORY)
    assert pulled.returncode == 2
    assert "damaged files: model.safetensors" in pulled.stderr


def test_damage_after_the_pull_is_found_by_verify(run: Run) -> None:
    folder = Path(run("pull", REPOSITORY).stdout.strip().splitlines()[-1])
    blob = (folder / "config.json").resolve()
    blob.write_bytes(blob.read_bytes() + b" ")
    verified = run("verify", REPOSITORY)
    assert verified.returncode == 2
    assert "damaged files: config.json" in verified.stderr


def test_a_cache_without_links_is_kept(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "snapshot"))
    monkeypatch.setattr("dsv2.checkpoint.hub.pull", lambda *asked: folder)
    words = rf"^{re.escape(str(folder))}: \S+ is no link .* nothing deleted$"
    with pytest.raises(HubError, match=words):
        pull_verified(REPOSITORY)
    assert sorted(os.listdir(folder)) == sorted(os.listdir(tiny_folder))


@pytest.mark.parametrize(
    ("arguments", "changes", "words"),
    [
        (("pull", "v2-lite"), {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot reach"),
        (("pull", "v2-lite"), {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"),
        (("pull", "someone/else"), {}, "does not give someone/else"),
        (("pull", "nonsense"), {}, "is unknown"),
        (("pull", "../../etc"), {}, "is unknown"),
        (("pull", "v2-lite", "--hub", "other"), {}, "allowed are huggingface, modelscope"),
        (("rm", "v2-lite", "--yes"), {}, "not on this machine"),
        (("verify", "v2-lite"), {}, "not on this machine"),
    ],
)
def test_errors_are_one_line_and_soon(
    run: Run, arguments: tuple[str, ...], changes: dict[str, Any], words: str
) -> None:
    started = time.monotonic()
    done = run(*arguments, **changes)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 10


def test_names_of_repositories() -> None:
    assert repository_of("v2-lite-chat") == "deepseek-ai/DeepSeek-V2-Lite-Chat"
    assert repository_of("a/b") == "a/b"
    for name in ("a", "a/b/c", "../x", "a/..", "/etc/passwd", ""):
        assert repository_of(name) is None
