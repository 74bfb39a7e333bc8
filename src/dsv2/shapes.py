"""Executable shape contracts: ``check((q, "T H N"), (c_kv, "S C"))`` at the borders of ops.

Each letter stands for one size for the whole call, as in the legend of ``docs/notation.md``;
a number stands for itself and ``*`` for any size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


BLOCK_SIZE = 64
"""Tokens per block of the latent cache (the page size of the public MLA decode kernels)."""


class ShapeError(ValueError):
    """A tensor does not have the shape its op's contract names."""


def check(*pairs: tuple[Tensor, str]) -> dict[str, int]:
    """Bind the letters of ``pairs`` to sizes; raise at the first mismatch.

    Args:
        pairs: tensors, each with its letters, e.g. ``(q, "T H N")``.

    Returns:
        The size of each letter.

    Raises:
        ShapeError: a rank or a size differs, naming the tensor's place, letter and both sizes.
    """
    sizes: dict[str, int] = {}
    for place, (tensor, spec) in enumerate(pairs):
        letters = spec.split()
        shape = tuple(tensor.shape)
        if len(letters) != len(shape):
            raise ShapeError(
                f"tensor {place} has shape {shape}, expected {len(letters)} axes '{spec}'"
            )
        for letter, size in zip(letters, shape, strict=True):
            if letter == "*":
                continue
            expected = int(letter) if letter.isdigit() else sizes.setdefault(letter, size)
            if size != expected:
                raise ShapeError(
                    f"tensor {place} has shape {shape}: axis {letter} of '{spec}' is {size}, "
                    f"expected {expected}"
                )
    return sizes
