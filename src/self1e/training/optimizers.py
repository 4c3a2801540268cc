"""Optimisers: AdamW, or Muon for matrices with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from self1e.errors import SettingError


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for the matrices of a model.

    Muon makes every update of a matrix orthogonal, so that rare directions move as fast as common ones. Word
    embeddings, convolutions, norms and biases are left to AdamW.

    Args:
        model: Parameters that take a gradient are trained.
        learning_rate: Of AdamW.
        matrix_learning_rate: Of Muon, scaled so that an update is as large as one of AdamW at this rate.
        weight_decay: Of matrices and embeddings; vectors (norms, biases) have none.
        betas: Of AdamW.

    Raises:
        SettingError: This torch has no Muon (before 2.9).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        matrix_learning_rate: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise SettingError(f"Muon needs torch >= 2.9, found {torch.__version__}: upgrade, or use AdamW alone.")
        matrices, others, vectors = split_parameters(model)
        muon = torch.optim.Muon(
            matrices, lr=matrix_learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        groups = [{"params": others, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=betas)
        self.parts: tuple[torch.optim.Optimizer, ...] = (muon, adamw)
        super().__init__([{"params": [*matrices, *others, *vectors]}], {})
        self._link()

    def _link(self) -> None:
        # The same dicts, not copies: a scheduler writes learning rates here and the parts read them.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step; ``closure`` recomputes the loss, as for any optimiser."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the states of both."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._link()


def split_parameters(
    model: nn.Module,
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Split what takes a gradient into matrices of hidden layers, other tensors, and vectors.

    A matrix of a hidden layer is the weight of an `nn.Linear` that is not tied to word embeddings.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)} - embeddings
    matrices, others, vectors = [], [], []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in linear:
            matrices.append(parameter)
        else:
            (others if parameter.ndim > 1 else vectors).append(parameter)
    return matrices, others, vectors
