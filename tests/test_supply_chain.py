"""Fault F65: what we depend on, without a network.

``supply_chain.csv`` lists versions that are known to be vulnerable, as the first one that is not,
of packages that are really among ours. None of them may be installed, and none may be allowed:
what ``pyproject.toml`` names has its lower bound there, what only our dependencies name has it in
``constraints.txt``.
"""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
REGISTRY = "https://registry.npmjs.org/"
PLAIN_RANGE = re.compile(r"[~^]?\d+(\.\d+){0,2}")


@dataclass(frozen=True)
class Row:
    ecosystem: str
    package: str
    safe: Version
    advisory: str
    reason: str

    def __str__(self) -> str:
        return f"{self.package} {self.advisory}"


def rows(ecosystem: str) -> list[Row]:
    with (ROOT / "tests" / "supply_chain.csv").open(newline="", encoding="utf-8") as file:
        found = [Row(**line | {"safe": Version(line["safe"])}) for line in csv.DictReader(file)]
    return [row for row in found if row.ecosystem == ecosystem]


def requirements() -> list[Requirement]:
    """All that pyproject.toml names, whatever the extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in [*project["dependencies"], *extras]]


def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@cache
def tree() -> frozenset[str]:
    """Names of everything that is installed because of us."""
    found: set[tuple[str, str]] = set()
    waiting = [(one, "") for one in requirements()]
    while waiting:
        needed, extra = waiting.pop()
        if needed.marker is not None and not needed.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(needed.name)
        for wanted in ("", *needed.extras):
            if (name, wanted) in found or name == "dsv2":
                continue
            try:
                lines = distribution(name).requires or []
            except PackageNotFoundError:
                continue  # of an extra that is not installed here
            found.add((name, wanted))
            waiting += [(Requirement(line), wanted) for line in lines]
    return frozenset(name for name, _ in found)


def least(specifier: SpecifierSet) -> Version | None:
    """The lower bound; None where there is none."""
    bounds = [Version(one.version) for one in specifier if one.operator in (">=", "==", "~=")]
    return max(bounds, default=None)


def allows(named: list[Requirement], limited: list[Requirement], row: Row) -> list[str]:
    """Requirements that let a vulnerable version in."""
    ours = [one for one in named if canonicalize_name(one.name) == row.package]
    bounds = [one for one in limited if canonicalize_name(one.name) == row.package]
    if any((found := least(one.specifier)) and found >= row.safe for one in bounds):
        if not ours:
            return []
    elif not ours:
        return [f"nothing keeps {row.package} from being older than {row.safe}: {row.reason}"]
    return [str(one) for one in ours if (found := least(one.specifier)) is None or found < row.safe]


@pytest.mark.parametrize("row", rows("pypi"), ids=str)
def test_no_vulnerable_version_is_allowed_or_installed(row: Row) -> None:
    assert row.package in tree(), f"{row.package} is not among our dependencies any more"
    assert Version(installed_version(row.package)) >= row.safe, row.reason
    assert allows(requirements(), constraints(), row) == []


def test_what_allows_a_vulnerable_version_is_found() -> None:
    row = Row("pypi", "some-thing", Version("1.2"), "none", "it is a test")
    for line in ("some_thing>=1.1", "Some.Thing", "some-thing<2"):
        assert allows([Requirement(line)], [], row) == [str(Requirement(line))]
        assert allows([], [Requirement(line)], row) != []
    good = Requirement("some-thing>=1.2,<2")
    assert allows([good], [], row) == allows([], [good], row) == []
    assert allows([], [], row) != []


def test_what_is_installed_keeps_to_the_constraints() -> None:
    for one in constraints():
        assert one.specifier.contains(installed_version(one.name)), str(one)


def test_everything_has_a_lower_bound_and_comes_from_the_index() -> None:
    for one in requirements():
        assert one.url is None, str(one)
        is_free = one.name in ("dsv2", "types-PyYAML")  # ourselves, and what runs nowhere
        assert is_free or least(one.specifier) is not None, str(one)


# The site


def lock() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "web" / "package-lock.json").read_text("utf-8"))
    assert found["lockfileVersion"] == 3
    return found


def entries(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Packages by name, each as often as it is installed."""
    for path, entry in found["packages"].items():
        if path:
            yield path.rpartition("node_modules/")[2], entry


def faults(found: dict[str, Any]) -> list[str]:
    """Packages whose bytes are not fixed, or that do not come from the registry."""
    wrong = []
    for name, entry in entries(found):
        source = entry.get("resolved", REGISTRY)  # .npmrc leaves out the registry's own
        is_plain = not entry.get("link") and source.startswith(REGISTRY)
        if not is_plain or not entry.get("integrity", "").startswith("sha512-"):
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("row", rows("npm"), ids=str)
def test_no_vulnerable_package_builds_the_site(row: Row) -> None:
    found = [Version(entry["version"]) for name, entry in entries(lock()) if name == row.package]
    assert found, f"{row.package} is not in the lock file any more"
    assert min(found) >= row.safe, row.reason
    wanted = json.loads((ROOT / "web" / "package.json").read_text("utf-8"))["devDependencies"]
    if row.package in wanted:
        assert Version(wanted[row.package].lstrip("^~")) >= row.safe


def test_every_package_of_the_site_is_fixed_and_from_the_registry() -> None:
    assert faults(lock()) == []
    settings = (ROOT / "web" / ".npmrc").read_text("utf-8").splitlines()
    assert not [line for line in settings if "registry=" in line.replace(" ", "")]
    wanted = json.loads((ROOT / "web" / "package.json").read_text("utf-8"))
    assert "dependencies" not in wanted
    for name, version in wanted["devDependencies"].items():
        assert PLAIN_RANGE.fullmatch(version), (
            f"{name} is {version}: a range of versions is allowed"
        )


@pytest.mark.parametrize(
    "entry",
    [
        {"version": "1.0.0"},
        {"integrity": "sha1-abc"},
        {"integrity": "sha512-abc", "resolved": "https://example.org/a.tgz"},
        {"integrity": "sha512-abc", "resolved": "git+ssh://git@github.com/a/a.git"},
        {"integrity": "sha512-abc", "resolved": "https://registry.npmjs.org.example.org/a.tgz"},
        {"integrity": "sha512-abc", "link": True},
    ],
)
def test_what_is_not_fixed_or_from_elsewhere_is_found(entry: dict[str, Any]) -> None:
    fine = {"integrity": "sha512-abc", "resolved": REGISTRY + "b/-/b-1.0.0.tgz"}
    packages = {"": {}, "node_modules/a": entry, "node_modules/a/node_modules/b": fine}
    assert faults({"packages": packages}) == ["a"]
