"""Small documented functions from source files: what pocket is asked to write."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

MAX_LINES = 14
MAX_CHARS = 600
_OPENING = re.compile(r'[rRuU]?"""')
_NAME = re.compile(r"[a-z][a-z0-9_]{2,40}")


@dataclass(frozen=True)
class Function:
    """A function and the first sentence of its docstring.

    Attributes:
        name: its name.
        parameters: names of its parameters.
        purpose: the first sentence, without its full stop.
        head: signature and docstring, up to where the body begins.
        body: the rest, indented.
    """

    name: str
    parameters: tuple[str, ...]
    purpose: str
    head: str
    body: str

    @property
    def source(self) -> str:
        """The whole function."""
        return self.head + self.body

    @property
    def signature(self) -> str:
        """The line or lines up to the docstring."""
        return _OPENING.split(self.head, maxsplit=1)[0].rstrip(" ")

    @property
    def opening(self) -> str:
        """The signature and a docstring of the purpose alone."""
        return f'{self.signature}    """{self.purpose}."""\n'

    @property
    def short(self) -> str:
        """The function with its docstring cut to the purpose, as an answer shows it."""
        return self.opening + self.body

    @property
    def is_method(self) -> bool:
        """Whether it belongs to a class."""
        return self.parameters[:1] in (("self",), ("cls",), ("mcs",))


def functions_of(text: str) -> Iterator[Function]:
    """The short functions of a module that have a docstring and a body."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = text.splitlines(keepends=True)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (found := _function(node, lines)) is not None:
            yield found


def _function(node: ast.FunctionDef, lines: list[str]) -> Function | None:
    docstring = ast.get_docstring(node)
    if docstring is None or len(node.body) < 2 or node.end_lineno is None:
        return None
    if not _NAME.fullmatch(node.name) or node.name.startswith(("test", "visit_")):
        return None
    purpose = " ".join(docstring.split("\n\n")[0].split()).split(". ")[0].rstrip(".")
    if not 15 <= len(purpose) <= 120 or not purpose.isascii() or not purpose[0].isupper():
        return None
    if any(mark in purpose for mark in ('"""', "\\", "`", ":param", ">>>", "@", "*")):
        return None
    first_of_body = node.body[1].lineno
    source = textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno]))
    offset = first_of_body - node.lineno
    pieces = source.splitlines(keepends=True)
    if len(pieces) - offset > MAX_LINES or not pieces[-1].strip():
        return None
    head, body = "".join(pieces[:offset]), "".join(pieces[offset:])
    if not head.startswith("def ") or not body.startswith("    ") or '"""' not in head:
        return None
    arguments = node.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    found = Function(node.name, tuple(names), purpose, head, body.rstrip("\n") + "\n")
    if len(found.short) > MAX_CHARS or not parses(found.short) or not parses(found.source):
        return None
    return found


def parses(text: str) -> bool:
    """Whether ``text`` is Python."""
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
