"""The text pocket learns from: Python's library and the installed permissive packages.

Every file is train or validation by the hash of its content, and what is taken from a file (its
docstrings, its functions) goes where the file goes. Only the list of files is kept with the model.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import random
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dsv2.recipes.pocket.arithmetic import Problem, problems
from dsv2.training.prepare import held_out

VALIDATION_SHARE = 0.02
PACKAGE_BYTES = 24_000_000
FILE_BYTES = 150_000
CODE_SUFFIX = ".py"
PROSE_SUFFIXES = (".md", ".rst")
PERMISSIVE = re.compile(r"\b(MIT|BSD|0BSD|Apache|PSF|ISC|HPND|Python Software Foundation)\b", re.I)
RESTRICTED = re.compile(r"GPL|Mozilla|MPL|EPL|CDDL|SSPL|proprietary", re.I)
SPLITS = ("validation", "train")


@dataclass(frozen=True)
class SourceFile:
    """A file of the corpus.

    Attributes:
        owner: the package, or ``python`` for the standard library.
        name: its path within the library or the environment.
        digest: SHA-256 of its content.
        split: train or validation.
        text: its content.
    """

    owner: str
    name: str
    digest: str
    split: str
    text: str

    @property
    def is_code(self) -> bool:
        """Whether it is Python rather than prose."""
        return self.name.endswith(CODE_SUFFIX)


def is_permissive(metadata: importlib.metadata.PackageMetadata) -> bool:
    """Whether a distribution's own metadata names a permissive licence and no other."""
    stated = [
        *(metadata.get_all("License-Expression") or metadata.get_all("License") or []),
        *(c for c in metadata.get_all("Classifier") or [] if c.startswith("License")),
    ]
    words = "\n".join(text[:200] for text in stated)
    return bool(PERMISSIVE.search(words)) and not RESTRICTED.search(words)


def _candidates() -> Iterator[tuple[str, str, Path]]:
    library = Path(sysconfig.get_path("stdlib"))
    outside = {"site-packages", "dist-packages", "__pycache__"}
    for path in sorted(library.rglob(f"*{CODE_SUFFIX}")):
        if not outside & set(path.parts):
            yield "python", path.relative_to(library).as_posix(), path
    distributions = {
        (found.metadata["Name"] or "").lower(): found
        for found in importlib.metadata.distributions()
    }
    for name, found in sorted(distributions.items()):
        if name == "dsv2" or not is_permissive(found.metadata):
            continue
        files = [
            file for file in found.files or [] if file.suffix in (CODE_SUFFIX, *PROSE_SUFFIXES)
        ]
        for file in sorted(files, key=lambda file: hashlib.sha256(str(file).encode()).digest()):
            if ".." not in file.parts:
                yield name, file.as_posix(), Path(str(found.locate_file(file)))


def source_files() -> Iterator[SourceFile]:
    """The files of the corpus, in a fixed order; larger packages give a part chosen by hash."""
    taken: dict[str, int] = {}
    for owner, name, path in _candidates():
        if not path.is_file() or not 200 <= path.stat().st_size <= FILE_BYTES:
            continue
        content = path.read_bytes()
        if owner != "python" and taken.get(owner, 0) + len(content) > PACKAGE_BYTES:
            continue
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            continue  # The library tests other encodings with such files.
        taken[owner] = taken.get(owner, 0) + len(content)
        split = "validation" if held_out(text, VALIDATION_SHARE) else "train"
        yield SourceFile(owner, name, hashlib.sha256(content).hexdigest(), split, text)


def docstrings(text: str) -> Iterator[str]:
    """The longer docstrings of a module, as prose."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            found = ast.get_docstring(node)
            if found is not None and len(found) >= 400 and ">>>" not in found:
                yield found


def topics() -> Iterator[tuple[str, str]]:
    """Python's own reference by topic, and the split of each."""
    try:
        from pydoc_data.topics import topics as found
    except ImportError:
        return
    for _, text in sorted(found.items()):
        yield ("validation" if held_out(text, VALIDATION_SHARE) else "train"), text


def digests_of(listing: Path) -> set[str]:
    """The digests in a ``files.tsv``."""
    lines = listing.read_text(encoding="utf-8").splitlines()
    return {line.split("\t")[2] for line in lines}


def write_corpus(folder: Path, only: Path | None = None) -> Path:
    """Write ``folder/{train,validation}/{code,prose,arithmetic}.jsonl`` and ``files.tsv``.

    Args:
        only: the ``files.tsv`` of an earlier corpus, beside which no file is taken.

    Returns:
        The list of files: owner, name, the first 16 digits of its SHA-256, split.
    """
    for split in SPLITS:
        (folder / split).mkdir(parents=True, exist_ok=True)
    outputs = {
        (split, kind): (folder / split / f"{kind}.jsonl").open("w", encoding="utf-8")
        for split in SPLITS
        for kind in ("code", "prose")
    }
    known = None if only is None else digests_of(only)
    listing = folder / "files.tsv"
    with listing.open("w", encoding="utf-8") as lines:
        for file in source_files():
            if known is not None and file.digest[:16] not in known:
                continue
            lines.write(f"{file.owner}\t{file.name}\t{file.digest[:16]}\t{file.split}\n")
            kind = "code" if file.is_code else "prose"
            _append(outputs[file.split, kind], file.text)
            if file.is_code:
                for text in docstrings(file.text):
                    _append(outputs[file.split, "prose"], text)
    for split, text in topics():
        _append(outputs[split, "prose"], text)
    for output in outputs.values():
        output.close()
    with (folder / "train" / "arithmetic.jsonl").open("w", encoding="utf-8") as output:
        for text in arithmetic_texts():
            _append(output, text)
    return listing


def texts_of(path: Path) -> Iterator[str]:
    """The texts of a JSONL file that :func:`write_corpus` wrote."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def _append(output: object, text: str) -> None:
    print(json.dumps({"text": text}, ensure_ascii=False), file=output)  # type: ignore[call-overload]


def arithmetic_texts(pages: int = 12_000) -> Iterator[str]:
    """Pages of sums and differences in random order, none of them held out."""
    known = [problem for problem in problems() if not problem.held_out]
    dice = random.Random(17)
    for page in range(pages):
        chosen = [dice.choice(known) for _ in range(24)]
        yield "\n".join(_line(problem, page % 3) for problem in chosen) + "\n"


def _line(problem: Problem, style: int) -> str:
    if style == 0:
        return f"{problem.question} = {problem.answer}"
    if style == 1:
        return f">>> {problem.question}\n{problem.answer}"
    return f"assert {problem.question} == {problem.answer}"
