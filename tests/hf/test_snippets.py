"""The README's two programs for transformers, run as they stand there."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def snippets() -> list[str]:
    found = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    return [code for code in found if "import dsv2.hf" in code]


def run(code: str) -> str:
    output = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(output):
        warnings.simplefilter("ignore")
        exec(compile(code, "README", "exec"), {"__name__": "__main__"})
    return output.getvalue()


def test_the_readme_has_both_programs() -> None:
    texts = snippets()
    assert len(texts) == 2
    assert "from transformers import" in texts[0]
    assert "from modelscope import" in texts[1]


def test_text_completion_goes_on_from_the_text() -> None:
    out = run(snippets()[0])
    start = "An attention function can be described as mapping a query and a set of key-value pairs"
    assert out.startswith(start)
    assert len(out) > len(start) + 100


@pytest.mark.parametrize(
    "hub", ["transformers", pytest.param("modelscope", marks=pytest.mark.slow)]
)
def test_chat_completion_answers(hub: str) -> None:
    out = run(snippets()[1].replace("from modelscope import", f"from {hub} import"))
    assert out.strip()
    assert "｜" not in out
