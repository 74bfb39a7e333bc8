"""Copies of checkpoints in 8 or 4 bits that are made once and kept beside other data of dsv2.

A copy lies in ``quantised/OWNER--MODEL/REVISION/SCHEME`` of :func:`dsv2.checkpoint.hub.data_home`.
What has no revision, such as a local folder, goes by a hash of its path and of the sizes and times
of its files instead.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dsv2.checkpoint.hub import CHECKSUMS, data_home, pocket_folder, pulled_models, repository_of
from dsv2.checkpoint.quantised import quantise_checkpoint, stored_bytes, stored_scheme
from dsv2.checkpoint.safetensors import ModelLoadError
from dsv2.kernels.executor import Executor
from dsv2.model.config import ModelConfig

ORIGIN = "origin.json"
"""The file of a copy that says what it is a copy of."""


@dataclass(frozen=True)
class Origin:
    """What a copy was made from.

    Attributes:
        name: ``owner/model``, ``pocket``, or the path of a local folder.
        version: the revision, or a hash of path, sizes and times.
    """

    name: str
    version: str


@dataclass(frozen=True)
class ConvertedCopy:
    """A checkpoint that was converted and kept.

    Attributes:
        origin: what it was made from.
        scheme: ``int8`` or ``int4``.
        folder: where it is.
        size: bytes of its files.
    """

    origin: Origin
    scheme: str
    folder: Path
    size: int


def _root() -> Path:
    return data_home() / "quantised"


def origin_of(folder: Path) -> Origin:
    """What a folder holds: a pulled model by its revision, anything else by its files."""
    own = folder.resolve()
    if own == pocket_folder().resolve():
        return Origin("pocket", _fingerprint(own))
    for model in pulled_models():
        if model.folder.resolve() == own:
            return Origin(model.repository, model.revision or _fingerprint(own))
    return Origin(str(own), _fingerprint(own))


def _fingerprint(folder: Path) -> str:
    files = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors") and path.name != CHECKSUMS:
            found = path.stat()
            files.append((path.name, found.st_size, found.st_mtime_ns))
    return hashlib.sha256(json.dumps([str(folder), files]).encode()).hexdigest()[:40]


def _model_folder(name: str) -> Path:
    if Path(name).is_absolute():
        name = f"local/{Path(name).name}"
    return _root() / name.replace("/", "--")


def copy_folder(origin: Origin, scheme: str) -> Path:
    """Where the copy of ``origin`` in ``scheme`` lies or would lie."""
    return _model_folder(origin.name) / origin.version / scheme


def _stored_origin(folder: Path) -> Origin | None:
    """What a copy was made from; None where its file is missing or damaged."""
    try:
        origin = Origin(**json.loads((folder / ORIGIN).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return origin if isinstance(origin.name, str) and isinstance(origin.version, str) else None


def _copy_at(folder: Path, origin: Origin, scheme: str) -> ConvertedCopy:
    size = sum(path.stat().st_size for path in folder.iterdir())
    return ConvertedCopy(origin, scheme, folder, size)


def converted_copies(name: str | None = None) -> Iterator[ConvertedCopy]:
    """Every copy, or those made from ``name``: a release, ``owner/model``, ``pocket``, a folder."""
    names = None if name is None else {name, repository_of(name), str(Path(name).resolve())}
    for path in sorted(_root().glob(f"*/*/*/{ORIGIN}")):
        folder = path.parent
        if ".tmp-" in folder.name:
            continue  # being written, or left by a process that was killed
        origin = _stored_origin(folder)
        if origin is not None and (names is None or origin.name in names):
            yield _copy_at(folder, origin, folder.name)


def leftovers(name: str) -> Iterator[ConvertedCopy]:
    """What lies among the copies of ``name`` and is none: damaged, or of a killed process.

    What a process is writing or removing now is not among it. Of a local folder, only what belongs
    to its files as they are now is found: the place alone does not tell which folder it was.
    """
    known = "pocket" if name == "pocket" else repository_of(name)
    origins: list[Origin] = []
    if known is not None:
        origins = [Origin(known, path.name) for path in sorted(_model_folder(known).glob("*"))]
    if Path(name).is_dir():
        origins.append(origin_of(Path(name)))
    for origin in origins:
        for path in sorted((_model_folder(origin.name) / origin.version).glob("*")):
            scheme, killed, _ = path.name.partition(".tmp-")
            is_left = path.is_dir() and (killed or _stored_origin(path) is None)
            if is_left and not _is_held(path.with_name(scheme)):
                yield _copy_at(path, origin, scheme)


def convert_once(
    folder: Path,
    scheme: str,
    executor: Callable[[], Executor],
    *,
    progress: Callable[[int, int], None] | None = None,
    on_wait: Callable[[], None] | None = None,
) -> tuple[ConvertedCopy, bool]:
    """The copy of ``folder`` in ``scheme``, made now unless it is there.

    Of two processes one converts and the other waits for it.

    Args:
        folder: a checkpoint in the published layout.
        scheme: ``int8`` or ``int4``.
        executor: makes what quantises; only called to convert.
        progress: called with the files written and their number, from 0 on.
        on_wait: called when another process is converting.

    Returns:
        The copy, and whether it was made now; one that is damaged or of another version of the
        format is made anew.

    Raises:
        ModelLoadError: the source is damaged or quantised already, or the disk is too full.
    """
    origin = origin_of(folder)
    target = copy_folder(origin, scheme)
    made = False
    if not is_current(target):
        with _locked(target, on_wait):
            if not is_current(target):
                if target.exists():
                    shutil.rmtree(target)
                _convert(folder, origin, target, scheme, executor, progress)
                made = True
    return _copy_at(target, origin, scheme), made


def is_current(folder: Path) -> bool:
    """Whether a copy is there that says what it was made from, in the format that is read."""
    if _stored_origin(folder) is None:
        return False
    try:
        return stored_scheme(folder) is not None
    except ModelLoadError:
        return False  # of another version


def _convert(
    folder: Path, origin: Origin, target: Path, scheme: str, executor: Callable[[], Executor],
    progress: Callable[[int, int], None] | None,
) -> None:  # fmt: skip
    if stored_scheme(folder) is not None:
        raise ModelLoadError(f"{folder}: is quantised already; there is nothing to convert")
    for left in target.parent.glob(f"{target.name}.tmp-*"):
        shutil.rmtree(left)  # of a process that was killed: whoever writes holds the lock
    config = ModelConfig.from_file(folder / "config.json")
    beside = sum(path.stat().st_size for path in folder.glob("*.json"))
    needed, free = stored_bytes(config, scheme) + beside, free_disk(target.parent)
    if needed > free:
        raise ModelLoadError(
            f"the copy of {origin.name} in {scheme} takes {needed / 1e6:,.1f} MB, "
            f"{free / 1e6:,.1f} MB are free in {target.parent}; make room, or set DSV2_HOME to a "
            "folder on a larger disk"
        )
    if progress is not None:
        progress(0, config.num_hidden_layers + 1)
    told = json.dumps({"name": origin.name, "version": origin.version})
    quantise_checkpoint(folder, target, scheme, executor(), progress, {ORIGIN: told + "\n"})


def free_disk(folder: Path) -> int:
    """Bytes that may be written to the disk of ``folder``."""
    return shutil.disk_usage(folder).free


def _lock_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.lock")


def _is_held(target: Path) -> bool:
    """Whether a process converts to a copy, or removes it, now."""
    try:
        with _lock_file(target).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def _locked(target: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of a copy; the system lets go of it when the process ends, however it ends."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock_file(target).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_copy(copy: ConvertedCopy) -> None:
    """Delete a copy; it disappears at once, and those who have its files open can read on."""
    with _locked(copy.folder.with_name(copy.scheme)):
        if copy.folder.exists():  # else the next conversion has cleared it away
            gone = copy.folder.with_name(f"{copy.scheme}.tmp-{uuid.uuid4().hex[:8]}")
            copy.folder.rename(gone)
            shutil.rmtree(gone)


__all__ = [
    "ConvertedCopy",
    "Origin",
    "convert_once",
    "converted_copies",
    "copy_folder",
    "is_current",
    "leftovers",
    "origin_of",
    "remove_copy",
]
