"""AdamW on an fp32 copy of the weights, with one gate that no bad gradient passes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsv2.training.config import OptimizerConfig


class MasterAdamW:
    """The optimiser of a model whose own weights may be bf16.

    Gradients are summed over micro-batches in fp32. The update is torch's fused AdamW on fp32
    copies, which are then rounded into the model: bf16 alone would lose most small updates.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.masters = {n: p.detach().float().clone() for n, p in self.parameters.items()}
        matrices = [master for master in self.masters.values() if master.ndim > 1]
        vectors = [master for master in self.masters.values() if master.ndim <= 1]
        self._adamw = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            fused=True,
        )

    def accumulate(self) -> None:
        """Move the model's gradients into the fp32 sums."""
        for name, parameter in self.parameters.items():
            master, gradient = self.masters[name], parameter.grad
            if gradient is None:
                continue
            if master.grad is None:
                master.grad = gradient.float() if gradient.dtype != torch.float32 else gradient
            else:
                master.grad.add_(gradient)
            parameter.grad = None

    def gradient_norm(self) -> Tensor:
        """Norm of the whole summed gradient, a scalar fp32."""
        gradients = [m.grad for m in self.masters.values() if m.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def step(self, rate: float, norm: Tensor) -> None:
        """Clip to the configured norm, update the fp32 weights and round them into the model."""
        torch.nn.utils.clip_grads_with_norm_(self.masters.values(), self.config.clip, norm)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        self.drop_gradients()
        self.write_back()

    def drop_gradients(self) -> None:
        """Forget the summed gradient."""
        for master in self.masters.values():
            master.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the fp32 weights into the model."""
        torch._foreach_copy_(list(self.parameters.values()), list(self.masters.values()))

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resume needs, by name; the tensors are live, not copies."""
        saved = {f"weight/{name}": master for name, master in self.masters.items()}
        for name, master in self.masters.items():
            for key, value in self._adamw.state.get(master, {}).items():
                saved[f"{key}/{name}"] = value
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
            state = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors.get(f"{key}/{name}")
                if value is not None:
                    state[key] = value.to(master.device, copy=True)
            if state:
                self._adamw.state[master] = state
        self.write_back()
