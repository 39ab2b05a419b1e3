"""Beta smoothing: label smoothing of another strength for each example, drawn and dealt out by confidence."""

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

    others is uniform over the classes other than the target. A batch draws as many b as it has rows, from torch's
    global generator, sorts them, and gives the largest to the example of whose target a moving average of the network
    is the most confident. In label smoothing's terms, the strength of an example is alpha * (1 - b).

    Args:
        alpha: weight of the smoothed labels, in [0, 1].
        concentration: of the Beta distribution, finite, above 0; the mean of b is concentration / (concentration + 1).
        decay: how much of the moving average is kept at a step, in [0, 1]. The first steps keep less:
            1 - 1 / (step + 1).

    Needs: the network, by `provide(model=network)`, and with each batch its inputs and how many optimizer steps were
        taken.

    When: confidence differs between examples for a reason, as with noisy or ambiguous ones. It costs one more forward
        pass for each batch, and a second network in memory and checkpoint. Here the moving average predicts in
        evaluation mode, with the network's batch statistics; in the authors' code it does so in training mode.

    Raises:
        ValueError: an option is out of range.

    Source: Zhang and Sabuncu, *Self-Distillation as Instance-Specific Label Smoothing*, NeurIPS 2020; defaults as in
        their code.
    """

    name = "beta_smoothing"
    summary = "smoothing strengths drawn for each batch, the smallest for the most confident example"
    paper = "Zhang and Sabuncu, NeurIPS 2020"
    year = 2020
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

    def provide(self, **given: Any) -> None:
        """Take the network, of which the moving average is kept."""
        super().provide(**given)
        if "model" in given:
            self.past = FrozenCopy(given["model"])

    @override
    def losses(self, rows: Rows) -> Tensor:
        if self.training and self.turn.advanced(rows.given["step"]):
            assert self.past is not None
            # The first time the average is the network as it is then, which may not be as it was when provided.
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
        past = passes.beside(self._average(), rows)
        averaged = passes.constant_logits(past, rows.given["inputs"], rows, "the moving average of the network")
        p = reference.masked_log_softmax(averaged).exp()
        confidence = (reference.target_mass(p, rows.target, None) * p).sum(-1)
        at = torch.arange(len(p), device=p.device) if rows.kept is None else rows.kept.nonzero().squeeze(-1)
        # The inverse of the distribution function, b ** concentration; on the CPU, whose generator every machine has.
        draws = torch.rand(len(at), dtype=torch.float64) ** (1 / self.concentration)
        b = torch.ones_like(confidence)
        b[at[confidence[at].argsort(stable=True)]] = draws.sort().values.to(b)
        return (self.strength * (1 - b)).to(logits.dtype)

    def _average(self) -> FrozenCopy:
        self.require()
        assert self.past is not None
        return self.past
