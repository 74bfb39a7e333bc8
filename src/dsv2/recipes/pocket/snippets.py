"""Short pieces of Python that stand alone, as in an editor that has just been opened."""

from __future__ import annotations

import ast
import random
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from dsv2.recipes.pocket import basics as basics_module
from dsv2.recipes.pocket.idioms import IDIOMS
from dsv2.recipes.pocket.python_code import Code

SNIPPET_LINES = 40

_NAMES = ("a", "b", "c", "x", "y", "n", "m", "values", "numbers", "items", "data", "text", "word",
          "name", "key", "left", "right", "first", "second", "size", "count", "result")  # fmt: skip


def snippets_of(code: Code) -> list[str]:
    """The short functions and classes of a text, each as if it stood alone."""
    found = []
    for node in ast.walk(code.tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            lines = code.lines[node.lineno - 1 : node.end_lineno]
            if 2 < len(lines) <= SNIPPET_LINES:
                found.append(textwrap.dedent("".join(lines)))
    return found


def plain(source: str, dice: random.Random) -> str:
    """A function without annotations and docstrings, and with other names for its parameters."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                argument.annotation = None
            if ast.get_docstring(node) is not None and len(node.body) > 1:
                del node.body[0]
    text = ast.unparse(tree) + "\n"
    if dice.random() < 0.5:
        return text
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.arg not in ("self", "args", "kwargs"):
            free = [name for name in _NAMES if name not in used]
            if free:
                used.add(name := dice.choice(free))
                text = re.sub(rf"(?<![.\w]){node.arg}\b", name, text)
    return text


def basic_snippets(dice: random.Random) -> Iterator[str]:
    """The basics as they are and as they are typed in haste, and the idioms."""
    source = Path(str(basics_module.__file__)).read_text(encoding="utf-8")
    functions = [
        ast.get_source_segment(source, node) or ""
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
    ]
    yield from (f"{text}\n" for text in functions)
    for text in functions:
        yield plain(text, dice)
        yield plain(text, dice)
    for text in IDIOMS:
        yield text
        yield text
    for _ in range(50):
        some = dice.sample(functions, 3)
        yield "\n\n".join(plain(text, dice) for text in some)
