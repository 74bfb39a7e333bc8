"""AdamW on an fp32 copy of the weights, with one gate that no bad gradient passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsv2.kernels.ops import AdamWFactors
from dsv2.kernels.registry import select
from dsv2.training.config import OptimizerConfig


@dataclass
class _Moments:
    """Running means of a gradient and of its square, fp32, after so many updates."""

    mean: Tensor
    square: Tensor
    step: int = 0


class MasterAdamW:
    """The optimiser of a model whose own weights may be bf16.

    Gradients of several micro-batches are summed in fp32; those of one alone stay as they are. The
    update is done on fp32 copies, which are then rounded into the model: bf16 alone would lose most
    small updates.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig, backend: str = "auto") -> None:
        self.config, self.backend = config, backend
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.masters = {n: p.detach().float().clone() for n, p in self.parameters.items()}
        self.gradients: dict[str, Tensor] = {}
        self._moments: dict[str, _Moments] = {}

    def accumulate(self) -> None:
        """Move the model's gradients into the sums."""
        for name, parameter in self.parameters.items():
            gradient, before = parameter.grad, self.gradients.get(name)
            if gradient is None:
                continue
            self.gradients[name] = gradient if before is None else before.float().add_(gradient)
            parameter.grad = None

    def gradient_norm(self) -> Tensor:
        """Norm of the whole summed gradient, a scalar fp32."""
        gradients = list(self.gradients.values())
        norms: list[Tensor] = []
        for dtype in dict.fromkeys(one.dtype for one in gradients):
            own = [one for one in gradients if one.dtype == dtype]
            norms += torch._foreach_norm(own, 2, torch.float32)
        return torch.linalg.vector_norm(torch.stack(norms))

    @torch.no_grad()
    def step(self, rate: float, norm: Tensor) -> None:
        """Clip to the configured norm, update the fp32 weights and round them into the model."""
        config = self.config
        scale = (config.clip / (norm + 1e-6)).clamp(max=1.0)
        for name, gradient in self.gradients.items():
            master = self.masters[name]
            if name not in self._moments:
                self._moments[name] = _Moments(torch.zeros_like(master), torch.zeros_like(master))
            moments = self._moments[name]
            moments.step += 1
            decay = config.weight_decay if master.ndim > 1 else 0.0
            factors = AdamWFactors(rate, config.beta1, config.beta2, config.epsilon, decay)
            update = select("adamw", self.backend, master.device.type)
            update(
                self.parameters[name], master, gradient, moments.mean, moments.square,
                factors, moments.step, scale,
            )  # fmt: skip
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Forget the summed gradient."""
        self.gradients.clear()

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the fp32 weights into the model."""
        torch._foreach_copy_(list(self.parameters.values()), list(self.masters.values()))

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resume needs, by name; weights and moments are live, not copies."""
        saved = {f"weight/{name}": master for name, master in self.masters.items()}
        for name, moments in self._moments.items():
            saved[f"step/{name}"] = torch.tensor(float(moments.step))
            saved[f"exp_avg/{name}"] = moments.mean
            saved[f"exp_avg_sq/{name}"] = moments.square
        return saved

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take what :meth:`tensors` gave.

        Raises:
            ValueError: a tensor is missing or has another shape.
        """
        for name, master in self.masters.items():
            saved = tensors.get(f"weight/{name}")
            if saved is None or saved.shape != master.shape:
                found = None if saved is None else tuple(saved.shape)
                raise ValueError(f"state of {name}: shape {found}, needed {tuple(master.shape)}")
            master.copy_(saved)
            parts = [tensors.get(f"{key}/{name}") for key in ("exp_avg", "exp_avg_sq", "step")]
            if any(part is not None for part in parts):
                mean, square, step = parts
                if mean is None or square is None or step is None:
                    raise ValueError(f"state of {name}: moments or their step are missing")
                mean, square = (one.to(master.device, copy=True) for one in (mean, square))
                self._moments[name] = _Moments(mean, square, int(step))
        self.write_back()
