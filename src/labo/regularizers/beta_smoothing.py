"""Beta smoothing: label smoothing with a random strength per example, assigned by confidence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from labo import checks, inner
from labo.kernels import reference
from labo.networks import FrozenCopy
from labo.reduction import Rows
from labo.regularizers import memory, passes
from labo.regularizers.base import SoftLabelRegularizer


class BetaSmoothing(SoftLabelRegularizer):
    """(1 - alpha) * CE(target, p) + alpha * CE(b * target + (1 - b) * others, p) with b from Beta(concentration, 1).

    others is uniform over the classes other than the target. For each batch, one b per row is drawn from torch's global
    generator. The draws are sorted, and the largest b goes to the example whose target has the highest confidence
    under a moving average of the network. As label smoothing, the strength of an example is alpha * (1 - b).

    Args:
        alpha: weight of the smoothed labels, in [0, 1].
        concentration: first parameter of the Beta distribution, finite, above 0; the mean of b is concentration /
            (concentration + 1).
        decay: decay of the moving average per step, in [0, 1]; at first at most 1 - 1 / (step + 1).

    Needs: the network, by `provide(model=network)`, and with each batch its inputs and the number of optimizer
        steps taken.

    When: confidence differs between examples for a reason, such as noise or ambiguity. It costs one more forward pass
        per batch, and a second network in memory and in the checkpoint. Here the moving average predicts in evaluation
        mode, with the network's running batch statistics; in the authors' code it predicts in training mode.

    Raises:
        ValueError: an option is out of range.

    Source: Zhang and Sabuncu, *Self-Distillation as Instance-Specific Label Smoothing*, NeurIPS 2020; defaults as in
        their code.
    """

    name = "beta_smoothing"
    summary = "smoothing strengths drawn for each batch, the smallest for the most confident example"
    paper = "Zhang and Sabuncu, NeurIPS 2020"
    year = 2020
    labels_from_target = True
    strength_name = "alpha"
    candidates = ({"alpha": 0.6}, {"alpha": 0.1}, {"alpha": 0.4}, {"alpha": 0.8}, {"alpha": 0.2})
    past: FrozenCopy | None

    def __init__(self, *, alpha: float = 0.6, concentration: float = 3.0, decay: float = 0.999) -> None:
        super().__init__(strength=alpha)
        checks.number("concentration", concentration, "(0, inf)")
        checks.share("decay", decay)
        self.concentration = concentration
        self.decay = decay
        self.turn = memory.ChangeCounter()
        self.register_module("past", None)

    @property
    def needs(self) -> tuple[str, ...]:
        """The network; with each batch, its inputs and the step."""
        return ("model", "inputs", "step")

    def provide(self, **inputs: Any) -> None:
        """Take the network, and start its moving average."""
        super().provide(**inputs)
        if "model" in inputs:
            self.past = FrozenCopy(inputs["model"])

    @override
    def losses(self, rows: Rows) -> Tensor:
        if self.training and self.turn.advanced(rows.given["step"]):
            assert self.past is not None
            # At the first step, copy the network: its weights may have changed since it was provided.
            ramp = 1 - 1 / (int(rows.given["step"]) + 1)
            decay = min(self.decay, ramp) if self.turn.turns > 1 else 0.0
            self.past.ema_update(self.provided("model"), decay=decay)
        return super().losses(rows)

    def labels(self, rows: Rows) -> Tensor:
        """Uniform over the classes other than the target, (N, C)."""
        mass = reference.target_mass(inner.working(rows.logits), rows.target, None)
        return (1 - mass) / max(1, mass.shape[-1] - 1)

    @torch.no_grad()
    def strength_of(self, rows: Rows) -> Tensor:
        """The strengths alpha * (1 - b), (N,); 0 for ignored rows."""
        logits = inner.working(rows.logits)
        past = passes.to_device_of(self._average(), rows)
        averaged = passes.constant_logits(past, rows.given["inputs"], rows, "the moving average of the network")
        p = reference.masked_log_softmax(averaged).exp()
        confidence = (reference.target_mass(p, rows.target, None) * p).sum(-1)
        at = torch.arange(len(p), device=p.device) if rows.kept is None else rows.kept.nonzero().squeeze(-1)
        # Inverse transform sampling: the CDF is b ** concentration. On the CPU, so that draws are the same on every
        # device.
        draws = torch.rand(len(at), dtype=torch.float64, device="cpu") ** (1 / self.concentration)
        b = torch.ones_like(confidence)
        b[at[confidence[at].argsort(stable=True)]] = draws.sort().values.to(b)
        return (self.strength * (1 - b)).to(logits.dtype)

    def _average(self) -> FrozenCopy:
        self.require()
        assert self.past is not None
        return self.past
