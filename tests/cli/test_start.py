"""One step from a name to an answer: pulled, converted once, planned, and said so."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from typer.testing import CliRunner, Result

from dsv2 import LLM
from dsv2.checkpoint import ModelLoadError, ModelNotFoundError, converted
from dsv2.checkpoint.converted import (
    ORIGIN,
    Origin,
    convert_once,
    converted_copies,
    copy_folder,
    origin_of,
    remove_copy,
)
from dsv2.checkpoint.hub import HubError
from dsv2.checkpoint.packed import WEIGHTS
from dsv2.checkpoint.quantised import stored_scheme
from dsv2.cli.main import app
from dsv2.engine import loading
from dsv2.engine.loading import prepare
from dsv2.engine.plan import DoesNotFitError, plan_memory
from dsv2.engine.weight_sizes import packed_bytes
from dsv2.kernels.cpu import CpuExecutor
from dsv2.model.config import ModelConfig
from tests.checkpoint.hub_server import COMMIT, Hub, serve
from tests.models import save_tiny
from tests.program import Program

REPOSITORY = "someone/wide-v2"
INT4 = ("--dtype", "int4", "--max-tokens", "3", "--json")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose matrices fill the groups of int4."""
    return save_tiny(
        tmp_path_factory.mktemp("wide"), hidden_size=64, intermediate_size=128,
        moe_intermediate_size=64, kv_lora_rank=64, v_head_dim=16, max_position_embeddings=40_000,
    )  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSV2_HOME", str(tmp_path / "dsv2"))
    return tmp_path / "dsv2"


@pytest.fixture
def hub(model: Path, tmp_path: Path) -> Iterator[Hub]:
    folder = Path(shutil.copytree(model, tmp_path / "served"))
    with serve(REPOSITORY, folder) as running:
        yield running


Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path, hub: Hub, home: Path) -> Start:
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip

    def begin(*arguments: str) -> Program:
        return Program(*arguments, environment=environment)

    return begin


def finish(process: Program, code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=90)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


@pytest.mark.slow
def test_two_processes_at_once_pull_and_convert_once(start: Start, home: Path) -> None:
    both = [start("run", REPOSITORY, "hello", *INT4) for _ in range(2)]
    found = [finish(one) for one in both]
    assert len({json.loads(out)["text"] for out, _ in found}) == 1
    assert sum("converted once to int4" in err for _, err in found) == 1
    assert not list(home.glob("quantised/*/*/*.tmp-*"))


# The rest runs in this process, on the hub, the memory and the disk that a test wants.


@pytest.fixture
def cache(hub: Hub, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process pulls to from the hub."""
    folder = tmp_path / "hf" / "hub"
    # This module keeps a copy of the constant from when it is imported, so it comes first.
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    return folder


def test_the_first_run_pulls_and_converts_and_the_second_does_neither(
    cache: Path, hub: Hub, home: Path
) -> None:
    done = run("run", REPOSITORY, "hello", *INT4)
    first = json.loads(done.stdout)
    target = home / "quantised" / "someone--wide-v2" / COMMIT / "int4"
    assert stored_scheme(target) == "int4"
    pulled, converted_line = first["done"]
    assert "all files are whole" in pulled
    assert re.fullmatch(rf"converted once to int4: [\d.]+ MB in {target}", converted_line)
    assert done.stderr.splitlines()[0] == (
        f"{REPOSITORY} is not here: pulling {REPOSITORY} from huggingface"
    )
    assert pulled in done.stderr
    assert converted_line in done.stderr
    assert first["plan"]["weights"] == "int4"
    assert "int4" in first["runs"]
    requests, written = len(hub.requests), (target / "config.json").stat().st_mtime_ns

    done = run("run", REPOSITORY, "hello", *INT4)
    again = json.loads(done.stdout)
    assert (again["text"], again["done"]) == (first["text"], [])
    assert re.fullmatch(r"memory: weights [^\n]* in int4, cache [^\n]*\n", done.stderr)
    assert len(hub.requests) == requests
    assert (target / "config.json").stat().st_mtime_ns == written

    # The copy stands on its own: with the original gone, nothing is pulled for it.
    shutil.rmtree(cache)
    done = run("run", REPOSITORY, "hello", *INT4)
    assert json.loads(done.stdout)["text"] == first["text"]
    assert len(done.stderr.splitlines()) == 1
    assert len(hub.requests) == requests
    other = run("run", REPOSITORY, "hello", "--dtype", "int8", "--no-pull")
    assert f"fetch it with: dsv2 pull {REPOSITORY}" in str(other.exception)


def test_list_verify_and_rm_know_the_copy(cache: Path) -> None:
    assert run("run", REPOSITORY, "hello", *INT4).exit_code == 0
    rows = json.loads(run("list", "--json").stdout)[1:]
    assert [(row["model"], row["hub"], row["format"]) for row in rows] == [
        (REPOSITORY, "huggingface", "float32"), (REPOSITORY, "converted", "int4"),
    ]  # fmt: skip
    assert "converted" in run("list").stdout
    copy = Path(rows[1]["folder"])
    assert rows[1]["bytes"] == sum(path.stat().st_size for path in copy.iterdir())
    (copy / "generation_config.json").write_text("{}")
    assert "all files are whole" in run("verify", REPOSITORY).stderr
    kept = CliRunner().invoke(app, ["rm", REPOSITORY], input="n\n")
    assert kept.exit_code == 1
    assert copy.exists()
    gone = run("rm", REPOSITORY, "--yes")
    assert f"{REPOSITORY} from huggingface: " in gone.stderr
    assert f"{REPOSITORY} in int4, {copy}: " in gone.stderr
    assert gone.stdout.startswith("freed ")
    assert not copy.exists()
    assert json.loads(run("list", "--json").stdout)[1:] == []
    assert isinstance(run("rm", REPOSITORY, "--yes").exception, ModelNotFoundError)


def test_a_pull_that_broke_off_is_taken_up_again(cache: Path) -> None:
    assert run("pull", REPOSITORY).exit_code == 0
    [shard] = cache.glob(f"*/snapshots/{COMMIT}/model.safetensors")
    shard.resolve().unlink()
    shard.unlink()
    refused = run("run", REPOSITORY, "hello", "--no-pull")
    assert f"go on with: dsv2 pull {REPOSITORY}" in str(refused.exception)
    done = run("run", REPOSITORY, "hello", "--max-tokens", "2")
    assert "all files are whole" in done.stderr
    assert done.stdout.strip()


def test_damage_on_the_way_is_not_run_and_the_next_try_fetches_it_again(
    cache: Path, hub: Hub
) -> None:
    hub.damage = "model.safetensors"
    failed = run("run", REPOSITORY, "hello")
    assert failed.stdout == ""
    assert isinstance(failed.exception, HubError)
    assert "damaged files: model.safetensors; they were deleted" in str(failed.exception)
    hub.damage = None
    assert run("chat", REPOSITORY, "--no-pull").exit_code == 1
    done = run("run", REPOSITORY, "hello", "--max-tokens", "2")
    assert "all files are whole" in done.stderr


def test_without_the_original_auto_takes_the_widest_copy_that_fits(
    cache: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scheme in ("int8", "int4"):
        options = ("--dtype", scheme, "--max-tokens", "1")
        assert run("run", REPOSITORY, "hello", *options).exit_code == 0
    shutil.rmtree(cache)
    requests = len(hub.requests)
    prepared = prepare(REPOSITORY, device="cpu")  # with memory for fp32
    assert stored_scheme(prepared.folder) == prepared.plan.weights == "int8"
    assert prepared.done == (
        f"{REPOSITORY} is not here: using its copy in int8, {prepared.folder}",
    )
    answer = run("run", REPOSITORY, "hello", "--max-tokens", "2", "--no-pull")
    assert prepared.done[0] in answer.stderr
    assert answer.stdout.strip()
    named = prepare(REPOSITORY, device="cpu", dtype="int4")
    assert stored_scheme(named.folder) == named.plan.weights == "int4"
    with pytest.raises(ModelNotFoundError, match="fetch it with"):
        prepare(REPOSITORY, device="cpu", dtype="bfloat16", pull=False)

    config = ModelConfig.from_file(prepared.folder / "config.json")
    little = enough_for(config, "int8") - 2000
    monkeypatch.setattr(loading, "free_bytes", lambda device: little)
    assert prepare(REPOSITORY, device="cpu").plan.weights == "int4"
    monkeypatch.setattr(loading, "free_bytes", lambda device: packed_bytes(config, "int4"))
    with pytest.raises(DoesNotFitError, match="are free, of which 5% stay so"):
        prepare(REPOSITORY, device="cpu")
    assert len(hub.requests) == requests


def test_without_the_original_an_outdated_copy_is_none(cache: Path) -> None:
    assert run("run", REPOSITORY, "hello", *INT4).exit_code == 0
    [copy] = converted_copies(REPOSITORY)
    outdate(copy.folder)
    shutil.rmtree(cache)
    for dtype in ("auto", "int4"):
        with pytest.raises(ModelNotFoundError, match="fetch it with"):
            prepare(REPOSITORY, device="cpu", dtype=dtype, pull=False)
    pulled, converted_line = json.loads(run("run", REPOSITORY, "hello", *INT4).stdout)["done"]
    assert pulled.startswith("pulled ")
    assert converted_line.startswith("converted once to int4: ")


def test_chat_pulls_as_well_and_says_what_a_hub_lacks(cache: Path) -> None:
    talk = CliRunner().invoke(app, ["chat", REPOSITORY, "--max-tokens", "2"], input="/exit\n")
    assert talk.exit_code == 0
    assert "all files are whole" in talk.stderr
    assert "does not give someone/else" in str(run("chat", "someone/else").exception)


@pytest.mark.parametrize("command", ["run", "chat"])
@pytest.mark.parametrize(
    ("option", "value"), [("--temperature", "2.5"), ("--top-p", "1.1"), ("--max-tokens", "0")]
)
def test_what_is_out_of_bounds_is_refused_before_the_pull(
    cache: Path, hub: Hub, command: str, option: str, value: str
) -> None:
    requests = len(hub.requests)
    refused = run(command, REPOSITORY, option, value)
    assert refused.exit_code == 2
    assert f"Invalid value for '{option}': Input should be " in refused.stderr
    assert len(hub.requests) == requests


def quantiser() -> CpuExecutor:
    return CpuExecutor(1)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_a_killed_conversion_leaves_nothing_that_counts(model: Path, home: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_once(model, "int4", quantiser, progress=stop)
    target = copy_folder(origin_of(model), "int4")
    assert [path.name for path in target.parent.iterdir()] == ["int4.lock"]
    # SIGKILL leaves the folder beside; whoever comes next clears it away.
    program = (
        "import os, signal, pathlib\n"
        "from dsv2.checkpoint.converted import convert_once\n"
        "from dsv2.kernels.cpu import CpuExecutor\n"
        "def die(done, total):\n"
        "    if done == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"convert_once(pathlib.Path({str(model)!r}), 'int4', lambda: CpuExecutor(1), progress=die)"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(target.parent.glob("int4.tmp-*"))) == 1
    assert list(converted_copies()) == []
    copy, made = convert_once(model, "int4", quantiser)
    assert made
    assert sorted(path.name for path in target.parent.iterdir()) == ["int4", "int4.lock"]
    assert convert_once(model, "int4", quantiser) == (copy, False)
    assert list(converted_copies(str(model))) == [copy]
    remove_copy(copy)
    assert list(converted_copies()) == []


@pytest.mark.parametrize("content", ["", "[]", '{"name": "x"}', '{"name": 1, "version": "x"}'])
def test_a_copy_that_does_not_say_of_what_is_none(model: Path, home: Path, content: str) -> None:
    copy, _ = convert_once(model, "int4", quantiser)
    (copy.folder / ORIGIN).write_text(content)
    assert list(converted_copies()) == []
    listed = run("list", "--json")
    assert listed.exit_code == 0, listed.exception
    assert "converted" not in {row["hub"] for row in json.loads(listed.stdout)}
    assert isinstance(run("rm", "someone/else", "--yes").exception, ModelNotFoundError)
    assert convert_once(model, "int4", quantiser) == (copy, True)
    (copy.folder / ORIGIN).write_text(content)
    removed = run("rm", str(model), "--yes")
    assert f"in int4, {copy.folder}: " in removed.stderr
    assert not copy.folder.exists()


@pytest.mark.parametrize("name", [REPOSITORY, "pocket", "folder"])
def test_rm_clears_away_what_a_killed_conversion_left(model: Path, home: Path, name: str) -> None:
    origin = origin_of(model) if name == "folder" else Origin(name, COMMIT)
    name = str(model) if name == "folder" else name
    target = copy_folder(origin, "int4")
    left = target.with_name("int4.tmp-0123abcd")
    left.mkdir(parents=True)
    (left / "model-00001-of-00002.safetensors").write_bytes(b"half")
    with converted._locked(target):  # as a conversion under way does
        assert isinstance(run("rm", name, "--yes").exception, ModelNotFoundError)
    assert isinstance(run("rm", "someone/else", "--yes").exception, ModelNotFoundError)
    assert left.exists()
    removed = run("rm", name, "--yes")
    assert removed.exit_code == 0, removed.exception
    assert f"{name} in int4, {left}: " in removed.stderr
    assert [path.name for path in target.parent.iterdir()] == ["int4.lock"]


def test_a_changed_folder_is_converted_anew(model: Path, home: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "own"))
    first, _ = convert_once(folder, "int4", quantiser)
    later = time.time_ns() + 10**9
    os.utime(folder / "model.safetensors", ns=(later, later))
    second, made = convert_once(folder, "int4", quantiser)
    assert made
    assert first.folder != second.folder
    assert {one.folder for one in converted_copies(str(folder))} == {first.folder, second.folder}
    removed = run("rm", str(folder), "--yes")
    assert removed.exit_code == 0, removed.output
    assert list(converted_copies()) == []
    assert (folder / "model.safetensors").exists()
    with pytest.raises(ModelLoadError, match="nothing to convert"):
        convert_once(convert_once(folder, "int8", quantiser)[0].folder, "int4", quantiser)


def outdate(folder: Path) -> None:
    """Make a copy one of the version of the format before."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["version"] -= 1
    (folder / "config.json").write_text(json.dumps(config))


def test_a_copy_of_another_version_of_the_format_is_made_anew(model: Path, home: Path) -> None:
    copy, _ = convert_once(model, "int4", quantiser)
    outdate(copy.folder)
    again, made = convert_once(model, "int4", quantiser)
    assert made
    assert again.folder == copy.folder
    assert stored_scheme(again.folder) == "int4"
    assert not convert_once(model, "int4", quantiser)[1]


def test_a_full_disk_is_said_before_anything_is_written(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converted, "free_disk", lambda folder: 100_000)
    with pytest.raises(ModelLoadError, match=r"int4 takes 0\.\d MB, 0\.1 MB are free"):
        prepare(str(model), device="cpu", dtype="int4")
    assert not list(home.glob("quantised/*/*/int4*/*"))


def enough_for(config: ModelConfig, weights: str) -> int:
    """The least memory with which ``auto`` takes a format."""
    low, high = 0, 10**10
    while high - low > 1000:
        middle = (low + high) // 2
        try:
            found = plan_memory(config, middle, sequences=1, convert=False).weights
            fits = WEIGHTS.index(found) <= WEIGHTS.index(weights)
        except DoesNotFitError:
            fits = False
        low, high = (low, middle) if fits else (middle, high)
    return high


def test_little_memory_takes_a_narrower_format_and_says_what_to_change(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig.from_file(model / "config.json")
    free = enough_for(config, "int8")
    monkeypatch.setattr(loading, "free_bytes", lambda device: free)
    lines: list[str] = []
    prepared = prepare(str(model), device="cpu", say=lines.append)
    assert prepared.plan.weights == "int8"
    assert stored_scheme(prepared.folder) == "int8"
    assert lines == list(prepared.done)
    assert lines[0].startswith("converted once to int8: ")
    assert lines[1].startswith("context of 32,768 of 40,000 tokens")
    llm = LLM(prepared.folder, device="cpu", plan=prepared.plan)
    assert llm.plan == prepared.plan
    assert llm.limits.max_context == 32_768
    with pytest.raises(ValueError, match="plan stands for dtype"):
        LLM(prepared.folder, dtype="int8", plan=prepared.plan)
    monkeypatch.setattr(loading, "free_bytes", lambda device: packed_bytes(config, "int4"))
    with pytest.raises(DoesNotFitError, match="are free, of which 5% stay so"):
        prepare(str(model), device="cpu")


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_model_for_a_gpu_is_converted_on_the_cpu(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    monkeypatch.setattr(loading, "pick_device", lambda name: torch.device(name))
    monkeypatch.setattr(loading, "free_bytes", lambda device: 10**10)
    lines: list[str] = []
    prepared = prepare(str(model), device="cuda", dtype=weights, say=lines.append)
    assert prepared.plan.weights == stored_scheme(prepared.folder) == weights
    assert lines[0].startswith(f"converted once to {weights}: ")


def test_a_release_that_cannot_fit_is_not_pulled(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def pulled(*arguments: str) -> Path:
        raise AssertionError("pulled")

    monkeypatch.setattr(loading, "pull_verified", pulled)
    monkeypatch.setattr(loading, "free_bytes", lambda device: 5 * 10**9)
    monkeypatch.setattr(loading, "resolve", _not_here)
    with pytest.raises(DoesNotFitError, match=r"as int4, .* 5\.00 GB are free"):
        prepare("v2-lite-chat", device="cpu")
    monkeypatch.setattr(loading, "free_bytes", lambda device: 12 * 10**9)
    with pytest.raises(AssertionError, match="pulled"):
        prepare("v2-lite-chat", device="cpu")
    with pytest.raises(ModelNotFoundError, match="not here"):
        prepare("v2-lite-chat", device="cpu", pull=False)


def _not_here(name: str) -> Path:
    raise ModelNotFoundError(f"{name} is not here")


def test_the_library_itself_never_pulls(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFoundError, match="fetch it with: dsv2 pull coder-v2-base"):
        LLM("coder-v2-base")


def test_verbose_prints_the_plan_and_json_has_it(model: Path, home: Path) -> None:
    done = run("run", str(model), "hello", "--max-tokens", "2", "--verbose", "--cache-tokens",
               "128", "--threads", "1")  # fmt: skip
    assert done.exit_code == 0, done.output
    for words in ("weights", "float32", "scratch", "128 tokens of", "128 of 40,000 tokens",
                  "--cache-tokens 40", "context of 128 of 40,000 tokens"):  # fmt: skip
        assert words in done.stderr, words
    assert "weights" not in done.stdout
    quiet = run("run", str(model), "hello", "--max-tokens", "2")
    assert len(quiet.stderr.splitlines()) == 1
    assert quiet.stdout == done.stdout
    plan = json.loads(run("run", str(model), "hello", "--json", "--dtype", "bf16").stdout)["plan"]
    assert (plan["weights"], plan["context"], plan["advice"]) == ("bfloat16", 40_000, [])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--dtype", "int3"), "dtype is 'int3', allowed are auto"),
        (("--cache-tokens", "5"), "cache_tokens is 5"),
        (("--cache-tokens", "900000000000"), "--cache-tokens"),
        (("--device", "tpu9"), "device is 'tpu9'"),
    ],
)
def test_options_that_cannot_be_are_refused(
    model: Path, home: Path, options: tuple[str, ...], words: str
) -> None:
    done = run("run", str(model), "hello", *options)
    assert done.exit_code != 0
    assert words in str(done.exception)
    assert isinstance(done.exception, ValueError)


def test_an_unknown_hub_is_refused(home: Path) -> None:
    with pytest.raises(HubError, match="allowed are huggingface, modelscope"):
        prepare("nobody/nothing", device="cpu", hub="elsewhere")
