"""From a name to a model in memory: pulled and converted where that is needed, planned, loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from dsv2.checkpoint import ModelNotFoundError, load_model, load_packed, resolve
from dsv2.checkpoint.converted import convert_once, converted_copies, is_current
from dsv2.checkpoint.fp8 import FP8
from dsv2.checkpoint.hub import missing_weights, pull_verified, repository_of
from dsv2.checkpoint.packed import WEIGHTS
from dsv2.checkpoint.quantised import stored_scheme
from dsv2.checkpoint.releases import RELEASES, config_of
from dsv2.checkpoint.weights import NAMED_DTYPES
from dsv2.engine.draft_model import check_vocabularies
from dsv2.engine.offload import memory_limits, plan_host_layers
from dsv2.engine.plan import GOOD_CACHE, MARGIN, DoesNotFitError, MemoryPlan, plan_memory, size_text
from dsv2.engine.structured import StructureCompiler
from dsv2.engine.weight_sizes import gpu_bytes
from dsv2.kernels.executor import Executor, make_executor
from dsv2.kernels.formats import SCHEMES
from dsv2.kernels.latent import LATENT_FORMATS, latent_format
from dsv2.kernels.offload import OffloadExecutor
from dsv2.kernels.registry import has
from dsv2.machine import available_bytes
from dsv2.model.config import ModelConfig
from dsv2.model.packed import PackedModel
from dsv2.model.transformer import Transformer
from dsv2.tokenizer import Tokenizer

_NO_LIMIT = 1 << 60
"""Bytes that hold anything: what a plan would be if all of it fitted."""
UNPACKED = ("float32", "bfloat16")
"""Formats of the weights of a ``Transformer``."""


def pick_device(name: str | torch.device) -> torch.device:
    """The device of a name; ``auto`` is a GPU where there is one.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is {name!r}, allowed are auto, cpu and cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {str(device)!r}, but torch sees no GPU; allowed here is cpu")
    return device


def free_bytes(device: torch.device) -> int:
    """Memory of a device that may be taken."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_bytes()


def _free_bytes(device: torch.device, memory: int | None) -> int:
    """The same, of which ``memory`` is the most on a CPU; None for all of it."""
    free = free_bytes(device)
    return free if memory is None or device.type != "cpu" else min(free, memory)


def plan_folder(
    folder: Path,
    device: torch.device,
    backend: str = "auto",
    *,
    dtype: str = "auto",
    cache_dtype: str = "auto",
    cache_tokens: int | None = None,
    max_sequences: int = 16,
    max_step_tokens: int = 2048,
    convert: bool = True,
    promised: int = 0,
    memory: int | None = None,
    max_memory: Mapping[str, str | int] | None = None,
) -> MemoryPlan:
    """The memory plan of a folder's model for the memory that is free now.

    Args:
        folder: of the model.
        device: that computes.
        backend: of the model's ops.
        dtype: as for ``LLM``.
        cache_dtype: as for ``LLM``.
        cache_tokens: as for ``LLM``.
        max_sequences: as for ``LLM``.
        max_step_tokens: as for ``LLM``.
        convert: ``int8`` and ``int4`` are made while a published checkpoint is read; False where
            a converted copy will be loaded instead.
        promised: bytes of the free memory that something else will take.
        memory: most bytes of the free memory to plan with on a CPU; None for all of it.
        max_memory: as for ``LLM``.

    Raises:
        ConfigError: the configuration is not one of this architecture.
        DoesNotFitError: the weights or the cache asked for do not fit.
        ValueError: an argument is out of bounds, or the backend cannot run the format.
    """
    stored, dtype = stored_scheme(folder), _full_name(dtype)
    on_gpu = device.type == "cuda" and _is_packed(device, backend)
    _check_fp8(dtype, on_gpu and max_memory is None)
    if dtype == FP8 and stored != FP8:
        raise ValueError(
            f"dtype is 'fp8', but {folder} has its weights in {stored or 'a wider format'}; "
            "dsv2 quantize MODEL FOLDER --scheme fp8 makes a checkpoint that has"
        )
    if stored == FP8 and not (on_gpu and max_memory is None and dtype in ("auto", FP8)):
        stored = None  # converted while it is read, as bf16 is
    if not _is_packed(device, backend) and (stored is not None or dtype in SCHEMES):
        raise ValueError(
            f"weights in {stored or dtype} need backend 'cpu' on device cpu or 'triton' on cuda, "
            f"got {backend!r} on {device}"
        )
    config = ModelConfig.from_file(folder / "config.json")

    def plan(free: int) -> MemoryPlan:
        return _plan(
            config, device, backend, stored, dtype, cache_dtype, cache_tokens, max_sequences,
            max_step_tokens, convert=convert, free=free,
        )  # fmt: skip

    free = max(_free_bytes(device, memory) - promised, 0)
    if max_memory is None:
        return plan(free)
    if not on_gpu:
        raise ValueError(
            f"max_memory is for backend 'triton' on device cuda, got {backend!r} on {device}"
        )
    limits = memory_limits(max_memory, {"cuda": free, "cpu": available_bytes()})
    ideal = plan(_NO_LIMIT)
    tokens = cache_tokens or min(config.max_position_embeddings, GOOD_CACHE)
    reserved = ideal.scratch_bytes + tokens * ideal.token_bytes
    away = plan_host_layers(config, ideal.weights, limits, reserved)
    # What is on the host does not count against the device.
    elsewhere = away * gpu_bytes(config, ideal.weights)[1]
    found = plan(limits["cuda"] + math.ceil(elsewhere / (1 - MARGIN)))
    return replace(found, free_bytes=limits["cuda"], host_layers=away)


def _check_fp8(dtype: str, has_kernels: bool) -> None:
    if dtype == FP8 and not has_kernels:
        raise ValueError(
            "dtype is 'fp8', which is for device cuda with backend 'triton' and without max_memory"
        )


def _plan(
    config: ModelConfig, device: torch.device, backend: str, stored: str | None, dtype: str,
    cache_dtype: str, cache_tokens: int | None, max_sequences: int, max_step_tokens: int = 2048,
    *, convert: bool, free: int, kept: Sequence[str] = (),
) -> MemoryPlan:  # fmt: skip
    packed = _is_packed(device, backend)
    if device.type == "cpu" and cache_dtype != "auto" and latent_format(cache_dtype).floating:
        raise ValueError(
            f"cache_dtype is {cache_dtype!r}, which is for device cuda; allowed here are auto, "
            f"{', '.join(name for name, kind in LATENT_FORMATS.items() if not kind.floating)}"
        )
    formats = WEIGHTS if packed else UNPACKED
    if stored is not None or dtype == FP8:
        formats = (stored or FP8,)
    elif kept:
        formats = tuple(kept)
    elif device.type == "cuda" and dtype == "auto":
        formats = ("bfloat16",)
    return plan_memory(
        config,
        free,
        dtype=dtype,
        cache=cache_dtype,
        formats=formats,
        layout=("gpu" if device.type == "cuda" else "cpu") if packed else "plain",
        convert=convert and stored is None,
        cache_tokens=cache_tokens,
        sequences=max_sequences,
        step_tokens=max(max_step_tokens, max_sequences),
    )


def _is_packed(device: torch.device, backend: str) -> bool:
    """Whether an executor runs whole layers on packed weights, in place of a ``Transformer``."""
    if backend == "auto":
        return device.type == "cpu" or has("executor", "triton")
    return backend in ("cpu", "triton")


def _full_name(dtype: str) -> str:
    allowed = ("auto", *NAMED_DTYPES, *SCHEMES, FP8)
    if dtype not in allowed:
        raise ValueError(f"dtype is {dtype!r}, allowed are {', '.join(allowed)}")
    return str(NAMED_DTYPES[dtype]).removeprefix("torch.") if dtype in NAMED_DTYPES else dtype


def load(
    folder: Path, plan: MemoryPlan, device: torch.device, backend: str, threads: int | None,
    deterministic: bool,
) -> Transformer | PackedModel:  # fmt: skip
    """The model in a plan's formats, packed where the backend runs whole layers."""
    if not _is_packed(device, backend):
        return load_model(folder, dtype=plan.weights, device=device, backend=backend)
    executor = make_executor(backend, device, threads, deterministic=deterministic)
    if plan.host_layers:
        executor = OffloadExecutor(executor, make_executor("cpu", "cpu", threads), plan.host_layers)
    return load_packed(folder, executor, weights=plan.weights, cache_format=plan.cache)


def find_draft(
    name: str | Path | None, speculate: int, folder: Path, tokenizer: Tokenizer
) -> Path | None:
    """The draft model's folder, once it is clear that its tokens are those of ``folder``'s model.

    Raises:
        ModelNotFoundError: it is not here.
        ValueError: nothing is to be guessed, or the vocabularies differ.
    """
    if name is None:
        return None
    if not speculate:
        raise ValueError("draft_model is given with speculate 0; allowed are 1 to 64 guesses")
    draft = resolve(name)
    check_vocabularies(tokenizer, Tokenizer.from_folder(draft))
    sizes = [ModelConfig.from_file(one / "config.json").vocab_size for one in (draft, folder)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"vocab_size of draft_model is {sizes[0]}, of model {sizes[1]}; allowed are equal ones"
        )
    return draft


def structures(tokenizer: Tokenizer, vocab_size: int) -> StructureCompiler | None:
    """The compiler where llguidance is installed; without it the engine refuses structures."""
    if find_spec("llguidance") is None:
        return None

    def text() -> str:
        return tokenizer.files()["tokenizer.json"].decode("utf-8")

    return StructureCompiler(text, vocab_size, tokenizer.eos_id)


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to be loaded.

    Attributes:
        folder: of the weights to load.
        plan: how they are to lie in memory.
        done: what had to be done, and where less was possible than the model allows.
    """

    folder: Path
    plan: MemoryPlan
    done: tuple[str, ...]


def prepare(
    name: str,
    *,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    cache_dtype: str = "auto",
    cache_tokens: int | None = None,
    memory: int | None = None,
    max_sequences: int = 1,
    max_step_tokens: int = 2048,
    threads: int | None = None,
    pull: bool = True,
    hub: str = "huggingface",
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Whatever a model needs before ``LLM(prepared.folder, plan=prepared.plan)``.

    A published model that is not here is pulled and compared with the hub's checksums. Where the
    plan says 8 or 4 bits, a published checkpoint is converted once and the copy is kept; it serves
    later starts on its own. Once the original is gone, ``auto`` takes the widest copy that fits.

    Args:
        name: a folder, ``pocket``, a release or ``owner/model``.
        device: as for ``LLM``.
        dtype: as for ``LLM``.
        cache_dtype: as for ``LLM``.
        cache_tokens: as for ``LLM``.
        memory: most bytes of the free memory to plan with on a CPU; None for all of it.
        max_sequences: as for ``LLM``.
        max_step_tokens: as for ``LLM``.
        threads: that convert; None for one per core.
        pull: whether the network may be used.
        hub: to pull from.
        say: called with each line of what is done, when it is done.
        progress: of a conversion: called with the files written and their number.

    Raises:
        ModelNotFoundError: the model is not here and may not be pulled, or there is none.
        HubError: the hub cannot be reached, does not have the model or sent something damaged.
        ModelLoadError: the files are damaged, or the disk is too full for the converted copy.
        DoesNotFitError: the model does not fit into the memory; a release is then not pulled.
        ValueError: an argument is out of bounds.
    """
    place = pick_device(device)
    dtype = _full_name(dtype)
    _check_fp8(dtype, place.type == "cuda" and _is_packed(place, "auto"))
    done: list[str] = []

    def tell(line: str) -> None:
        done.append(line)
        say(line)

    def plan_of(config: ModelConfig, kept: Sequence[str] = ()) -> MemoryPlan:
        return _plan(
            config, place, "auto", None, dtype, cache_dtype, cache_tokens, max_sequences,
            max_step_tokens, convert=False, free=_free_bytes(place, memory), kept=kept,
        )  # fmt: skip

    folder = _folder_here(name)
    if folder is None:
        kept = _copy_here(name, dtype, plan_of) if _is_packed(place, "auto") else None
        if kept is not None:
            if dtype == "auto":
                tell(f"{name} is not here: using its copy in {kept[1].weights}, {kept[0]}")
            _tell_context(kept[1], tell)
            return Prepared(*kept, tuple(done))
        if not pull:
            resolve(name)  # says that it is not here, or
            raise ModelNotFoundError(f"{name}: the pull broke off; go on with: dsv2 pull {name}")
        if name in RELEASES:
            plan_of(config_of(name))  # Before gigabytes are fetched that will not fit.
        say(f"{name} is not here: pulling {repository_of(name)} from {hub}")
        folder = pull_verified(name, hub)
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        tell(f"pulled {size_text(size)} to {folder}, all files are whole")

    plan = plan_folder(
        folder, place, dtype=dtype, cache_dtype=cache_dtype, cache_tokens=cache_tokens,
        max_sequences=max_sequences, max_step_tokens=max_step_tokens, convert=False, memory=memory,
    )  # fmt: skip
    if plan.weights in SCHEMES and stored_scheme(folder) is None:
        folder = _converted(folder, plan.weights, threads, tell, say, progress)
    _tell_context(plan, tell)
    return Prepared(folder, plan, tuple(done))


def _folder_here(name: str) -> Path | None:
    """The folder of a model; None for a hub's that has not been pulled, or not all of it.

    Raises:
        ModelNotFoundError: the name is neither here nor one of a hub's.
    """
    try:
        folder = resolve(name)
    except ModelNotFoundError:
        if repository_of(name) is None or Path(name).is_dir():
            raise
        return None
    is_local = (Path(name).expanduser() / "config.json").is_file()
    if not is_local and repository_of(name) is not None and missing_weights(folder):
        return None
    return folder


def _copy_here(
    name: str, dtype: str, plan_of: Callable[[ModelConfig, Sequence[str]], MemoryPlan]
) -> tuple[Path, MemoryPlan] | None:
    """A converted copy of a model that is gone: of the newest version, the widest that fits."""
    copies = [
        one
        for one in converted_copies(name)
        if dtype in ("auto", one.scheme) and is_current(one.folder)
    ]
    if not copies:
        return None
    newest = max(copies, key=lambda one: one.folder.stat().st_mtime)
    folders = {one.scheme: one.folder for one in copies if one.origin == newest.origin}
    config = ModelConfig.from_file(newest.folder / "config.json")
    try:
        plan = plan_of(config, [scheme for scheme in SCHEMES if scheme in folders])
    except DoesNotFitError:
        plan_of(config, ())  # raises where no other format fits either
        return None
    return folders[plan.weights], plan


def _converted(
    folder: Path, scheme: str, threads: int | None,
    tell: Callable[[str], None], say: Callable[[str], None],
    progress: Callable[[int, int], None] | None,
) -> Path:  # fmt: skip
    def executor() -> Executor:
        # Whatever device computes later: the quantiser is the CPU's.
        return make_executor("cpu", "cpu", threads)

    copy, made = convert_once(
        folder,
        scheme,
        executor,
        progress=progress,
        on_wait=lambda: say(f"another process is converting to {scheme}: waiting for it"),
    )
    if made:
        tell(f"converted once to {scheme}: {size_text(copy.size)} in {copy.folder}")
    return copy.folder


def _tell_context(plan: MemoryPlan, tell: Callable[[str], None]) -> None:
    if plan.context < plan.model_context:
        more = f"; for more: {'; or '.join(plan.advice)}" if plan.advice else ""
        tell(f"context of {plan.context:,} of {plan.model_context:,} tokens{more}")
