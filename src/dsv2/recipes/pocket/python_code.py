"""A Python text by lines: which are code, and where blocks end."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator


class Code:
    """A Python text, and which of its lines are code rather than documentation.

    Raises:
        SyntaxError: it is not Python.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self.tree = ast.parse(text)
            except (ValueError, RecursionError, MemoryError) as error:
                raise SyntaxError(str(error)) from error
        # Lines as ast counts them: a form feed ends none.
        self.lines = re.findall(r"[^\n]*\n|[^\n]+", text)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))
        documentation = set(_documentation(self.tree))
        self.code = [
            number
            for number, line in enumerate(self.lines)
            if number + 1 not in documentation
            and len(line) <= 120
            and line.strip()
            and not line.lstrip().startswith("#")
        ]

    def bounds(self, number: int) -> tuple[int, int, int]:
        """Where a line begins, where its words begin and where they end."""
        line = self.lines[number]
        start = self.starts[number]
        indent = len(line) - len(line.lstrip())
        return start, start + indent, start + len(line.rstrip())

    def indent(self, number: int) -> int:
        """Columns before the words of a line."""
        return len(self.lines[number]) - len(self.lines[number].lstrip())

    def block_end(self, number: int, indent: int, limit: int) -> int:
        """The last of at most ``limit`` lines from ``number`` that are indented so far or more."""
        last = number
        for place in range(number, min(number + limit, len(self.lines))):
            if not self.lines[place].strip():
                continue
            if self.indent(place) < indent:
                break
            last = place
        return last


def _documentation(tree: ast.AST) -> Iterator[int]:
    """The lines of strings that are statements."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)


def code_of(text: str) -> Code | None:
    """``text`` as code, or None when it is no Python."""
    try:
        return Code(text)
    except SyntaxError:
        return None
