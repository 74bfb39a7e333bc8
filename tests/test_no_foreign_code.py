"""What would run code that somebody else has written, or read files that can, is nowhere in use."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "dsv2"
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "jinja2"}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    "torch": {"load"}, "yaml": {"load", "load_all", "unsafe_load", "full_load"},
    "os": {"system", "popen"}, "numpy": {"load"}, "np": {"load"},
}  # fmt: skip
OPTIONS = {"trust_remote_code", "allow_pickle", "shell"}


def findings(code: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (name for one in node.names if (name := _top(one.name)) in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if (name := _top(node.module)) in MODULES:
                yield name
            for one in node.names:
                if one.name in METHODS.get(node.module, ()):
                    yield f"{node.module}.{one.name}"
        elif isinstance(node, ast.Call):
            yield from _of_call(node)


def _of_call(node: ast.Call) -> Iterator[str]:
    called = node.func
    if isinstance(called, ast.Name) and called.id in CALLS:
        yield called.id
    if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
        module = called.value.id
        yield from (f"{module}.{name}" for name in METHODS.get(module, ()) if name == called.attr)
    for option in node.keywords:
        is_off = isinstance(option.value, ast.Constant) and option.value.value is False
        if option.arg in OPTIONS and not is_off:
            yield f"{option.arg}="


def _top(module: str) -> str:
    return module.partition(".")[0]


def test_no_pickle_no_eval_no_remote_code_no_templates() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 200
    found = {
        (file.relative_to(SOURCE).as_posix(), what)
        for file in files
        for what in findings(file.read_text(encoding="utf-8"))
    }
    assert found == set()


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import pickle as p", "pickle"), ("from dill import loads", "dill"),
        ("def f():\n    import jinja2.sandbox", "jinja2"), ("eval(x)", "eval"),
        ("torch.load(f, weights_only=True)", "torch.load"), ("yaml.load(f)", "yaml.load"),
        ("from torch import load", "torch.load"), ("os.popen(x)", "os.popen"),
        ("np.load(f, allow_pickle=True)", "allow_pickle="),
        ("read(f, trust_remote_code=x)", "trust_remote_code="), ("run(c, shell=True)", "shell="),
    ],
)  # fmt: skip
def test_it_would_be_noticed(code: str, what: str) -> None:
    assert what in set(findings(code))


@pytest.mark.parametrize(
    "code", ["model.eval()", "yaml.safe_load(f)", "re.compile(x)", "run(c, shell=False)"]
)
def test_what_only_looks_alike_is_let_be(code: str) -> None:
    assert list(findings(code)) == []
