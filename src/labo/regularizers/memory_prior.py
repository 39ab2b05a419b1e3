"""LABO's prior from a memory: what the network has said of each example, sharpened."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from labo import checks, functional, inner, kernels
from labo.kernels import reference
from labo.kernels.largest import largest
from labo.kernels.options import Options
from labo.reduction import Rows
from labo.regularizers.prediction_memory import Kept, PredictionMemory, spread

# The sharpness that is taken where none is given: less with many classes.
MAX_CLASSES_SHARPENED, SHARP, LESS_SHARP = 50, 2.0, 1.5


class MemoryPrior(nn.Module):
    """The prior r = m ** sharpness / sum(m ** sharpness) of each example, m from a `PredictionMemory`.

    The loss of an example with smoothed target t = (1 - epsilon) * target + epsilon / C is
    (1 - alpha) * CE(t, p) + alpha * V(logits; r), whose gradient is p - (1 - alpha) * t - alpha * q*. The prediction
    is remembered afterwards, in training alone.

    Args:
        method: the name of the method, for errors.
        sharpness: above 0; None for 2 with up to 50 classes and 1.5 with more.
        epsilon: in [0, 1].
        decay, top: as in `PredictionMemory`.
    """

    def __init__(
        self, method: str, *, sharpness: float | None, epsilon: float, decay: float, top: int | None = None
    ) -> None:
        super().__init__()
        if sharpness is not None:
            checks.number("sharpness", sharpness, "(0, inf)")
        checks.number("epsilon", epsilon, "[0, 1]")
        self.sharpness, self.epsilon = sharpness, epsilon
        self.memory = PredictionMemory(method, decay=decay, top=top)

    def options(self) -> dict[str, Any]:
        """The options that it was made with."""
        memory = {"decay": self.memory.decay, "epsilon": self.epsilon, "top": self.memory.top}
        return {"sharpness": self.sharpness, **memory}

    @torch.no_grad()
    def priors(self, rows: Rows, examples: int) -> Tensor:
        """The priors (N, C) of the rows, in working precision; the uniform one for ignored rows."""
        self.memory.prepare(examples, rows)
        return self.sharpened(self._distributions(self.memory.places(rows, examples), rows))

    def losses(
        self, rows: Rows, examples: int, alpha: float | Tensor, beta: float | Tensor, value: str, training: bool
    ) -> Tensor:
        """The loss of each row, (N,), in working precision; in training the predictions are remembered."""
        with torch.no_grad():
            places = self._visit(rows, examples, training)
            m = self._distributions(places, rows)
            prior = self.sharpened(m)
        smoothed = functional.labo_losses(rows, functional.row_options(rows, self.epsilon, math.inf, None))
        options = functional.row_options(rows, 1.0, beta, None, value)
        regularized = reference.row_losses(rows.logits, rows.target, **{**options.named(), "prior": prior})
        losses = reference.mix(smoothed, regularized, rows.per_row("alpha", alpha))
        if training:
            with torch.no_grad():
                self.memory.remember(places, m, inner.masked_softmax(inner.working(rows.logits)), rows)
        return losses

    def solver(self, rows: Rows, examples: int, alpha: float, training: bool) -> MemorySolver:
        """The losses of the rows and their gradient, at beta = inf."""
        with torch.no_grad():
            places = self._visit(rows, examples, training)
            return MemorySolver(self, rows, places, alpha, self.memory.read(places), training)

    def _visit(self, rows: Rows, examples: int, training: bool) -> Tensor:
        """The places of the rows, checked."""
        self.memory.prepare(examples, rows)
        places = self.memory.places(rows, examples)
        if training:
            self.memory.check_labels(places, rows)
        return places

    def _distributions(self, places: Tensor, rows: Rows) -> Tensor:
        return self.memory.distributions(places, rows.raw.shape[-1]).to(reference.working_dtype(rows.raw))

    def exponent(self, classes: int) -> float:
        """The sharpness with so many classes."""
        if self.sharpness is not None:
            return self.sharpness
        return SHARP if classes <= MAX_CLASSES_SHARPENED else LESS_SHARP

    def sharpened(self, m: Tensor) -> Tensor:
        """The priors of distributions m (N, C); zeros where m is."""
        powered = _power(m, self.exponent(m.shape[-1]))
        return powered.div_(powered.sum(-1, keepdim=True).clamp_(min=torch.finfo(m.dtype).tiny))


class MemorySolver:
    """The losses of rows and their gradient at beta = inf, in few operations; see `labo.kernels.autograd`.

    The label of a row is known before its logits are: target, uniform distribution and prior, mixed. When it is called
    first, in training, the predictions are remembered.
    """

    def __init__(
        self, prior: MemoryPrior, rows: Rows, places: Tensor, alpha: float, read: Kept | Tensor, training: bool
    ) -> None:
        self.prior, self.memory, self.rows, self.places, self.alpha = prior, prior.memory, rows, places, alpha
        self.read = read
        # Which rows are still to be remembered: a second backward pass solves again.
        self.pending = torch.full((len(places),), training, device="cpu")
        self.remembers = False

    def of(self, part: slice | Tensor) -> MemorySolver:
        """The solver of some of the rows, which are remembered when it is called."""
        kept = None if self.rows.kept is None else self.rows.kept[part]
        if kept is not None and bool(kept.all()):  # ignored rows are left out of the product
            kept = None
        rows = replace(self.rows, raw=self.rows.raw[part], target=self.rows.target[part], kept=kept, _clean=[])
        read = Kept(*(value[part] for value in self.read)) if isinstance(self.read, Kept) else self.read[part]
        some = MemorySolver(self.prior, rows, self.places[part], self.alpha, read, False)
        at = part if isinstance(part, slice) else part.cpu()
        some.remembers = bool(self.pending[at].any())
        self.pending[at] = False
        return some

    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        shares: Tensor,
        options: Options,
        *,
        gradient: bool,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As `blocked.solve`; `out` may be taken for the gradient."""
        if bool(self.pending.any()):
            self.pending[:], self.remembers = False, True
        z = inner.working(logits.detach())
        if self.rows.kept is not None:
            z = torch.where(self.rows.kept.unsqueeze(-1), z, 0.0)
        if out is not None and (z.data_ptr() != out.data_ptr() or z.dtype != out.dtype):
            out = None
        solved = None
        if isinstance(self.read, Kept) and z.device.type == "cpu" and target.dim() == 1:
            solved = self._from_kept(z, self.read, shares, gradient, out)
        losses, made = solved or self._from_whole(z, shares, options.weight, gradient)
        self.remembers = False
        return losses, None if made is None else made.to(logits.dtype)

    def row_losses(self, logits: Tensor, weight: Tensor | None) -> Tensor:
        """The losses (N,) by the reference formulas, differentiable in the logits to any order."""
        z = inner.working(logits)
        return reference.cross_entropy(self._label(z.detach(), weight)[0], reference.masked_log_softmax(z))

    def _whole(self, classes: int, dtype: torch.dtype) -> Tensor:
        return (spread(self.read, classes) if isinstance(self.read, Kept) else self.read).to(dtype)

    def _label(self, z: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """(the labels (N, C), of which masked classes have nothing; their mass (N, 1))."""
        limit = inner.over_rows("beta", math.inf, z)
        label = inner.labels_of_rows(z, limit, self.prior.sharpened(self._whole(z.shape[-1], z.dtype))).mul_(self.alpha)
        label += inner.labels_of_rows(z, limit, None).mul_((1 - self.alpha) * self.prior.epsilon)
        target = reference.target_mass(z, self.rows.target, weight)
        mass = target.sum(-1, keepdim=True)
        return label.mul_(mass).add_(target, alpha=(1 - self.alpha) * (1 - self.prior.epsilon)), mass

    def _from_whole(
        self, z: Tensor, shares: Tensor, weight: Tensor | None, gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(losses times shares, the gradient of their sum), from whole distributions."""
        solved = self._at_once(z) if z.device.type == "cpu" and not self.rows.has_probabilities else None
        if solved is None:  # probabilities, masked classes, or NaN
            label, mass = self._label(z, weight)
            losses, p = reference.cross_entropy(label, reference.masked_log_softmax(z)), inner.masked_softmax(z)
        else:
            (losses, p, label), mass = solved, None
        made = None
        if gradient:
            made = (p if mass is None else p * mass).sub(label).mul_(shares.unsqueeze(-1))
            if mass is not None:
                made = torch.where((shares == 0).unsqueeze(-1), 0.0, made)
        if self.remembers:
            self.memory.remember(self.places, self._whole(z.shape[-1], z.dtype), p, self.rows)
        return torch.where(shares == 0, 0.0, losses * shares), made

    def _at_once(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """(losses, p, label) of class indices with finite logits; None for others."""
        label = self.prior.sharpened(self._whole(z.shape[-1], z.dtype)).mul_(self.alpha)
        label.add_((1 - self.alpha) * self.prior.epsilon / max(1, z.shape[-1]))
        share = (1 - self.alpha) * (1 - self.prior.epsilon)
        label.scatter_(-1, self.rows.target.unsqueeze(-1), share, reduce="add")
        log_p = torch.log_softmax(z, -1)
        losses = torch.linalg.vecdot(label, log_p).neg_()
        return (losses, log_p.exp_(), label) if math.isfinite(losses.sum().item()) else None

    def _from_kept(
        self, z: Tensor, kept: Kept, shares: Tensor, gradient: bool, out: Tensor | None
    ) -> tuple[Tensor, Tensor | None] | None:
        """The same from the entries that are kept of many classes; None where a class is masked.

        The label is uniform but at the kept classes and the target: a smoothed cross-entropy, whose fused
        implementation makes losses and gradient, and some entries beside.
        """
        classes = z.shape[-1]
        total = z.sum(-1)
        if not math.isfinite(total.sum().item()):
            return None
        others = max(1, classes - kept.mass.shape[1])
        kept = Kept(kept.mass.to(z.dtype), kept.classes, kept.rest.to(z.dtype))
        sharpness = self.prior.exponent(classes)
        entries, each = _power(kept.mass, sharpness), _power(kept.rest / others, sharpness)
        norm = (entries.sum(-1) + others * each).clamp_(min=torch.finfo(entries.dtype).tiny)
        entries, each = entries / norm.unsqueeze(-1), each / norm
        uniform = ((1 - self.alpha) * self.prior.epsilon + self.alpha * classes * each).clamp_(0, 1)  # spread evenly
        options = Options(uniform, math.inf)
        beside = (entries - each.unsqueeze(-1)).mul_(self.alpha)
        at_target = (1 - self.alpha) * (1 - self.prior.epsilon) - (1 - uniform)
        index = self.rows.target.unsqueeze(-1)
        # Before the gradient, which may lie where the logits did.
        z_kept, z_target = z.gather(-1, kept.classes), z.gather(-1, index).squeeze(-1)
        top = largest(z, kept.mass.shape[1]) if self.remembers else None
        ignored = torch.logsumexp(z, -1) if self.remembers and not bool(shares.all()) else None
        solve = kernels.choose("auto", (z,), self.rows.target, options) or reference.solve
        losses, made = solve(z, self.rows.target, shares, options, gradient=gradient, out=out)
        if top is not None:
            weighed = shares != 0
            plain = losses / torch.where(weighed, shares, 1.0) + (1 - uniform) * z_target + uniform * total / classes
            lse = plain if ignored is None else torch.where(weighed, plain, ignored)
            self._remember_kept(kept, top, z_kept, lse.unsqueeze(-1), others)
        losses = losses - shares * ((beside * z_kept).sum(-1) + at_target * z_target)
        if made is not None:
            made.scatter_add_(-1, kept.classes, beside.mul_(-shares.unsqueeze(-1)))
            made.scatter_add_(-1, index, (-shares * at_target).unsqueeze(-1))
        return losses, made

    def _remember_kept(
        self, kept: Kept, largest_logits: tuple[Tensor, Tensor], z_kept: Tensor, lse: Tensor, others: int
    ) -> None:
        """Take the predictions exp(z - lse): the largest entries are among those kept and the largest predictions."""
        decay, count = self.memory.decay, kept.mass.shape[1]
        old = kept.mass * decay + (z_kept - lse).exp_().mul_(1 - decay)
        z_top, top = largest_logits
        new = (z_top - lse).exp_().mul_(1 - decay) + decay * (kept.rest / others).unsqueeze(-1)
        known = (top.unsqueeze(-1) == kept.classes.unsqueeze(-2)).any(-1)
        mass, at = torch.cat([old, new.masked_fill_(known, -1.0)], -1).topk(count)
        classes = torch.cat([kept.classes, top], -1).gather(-1, at)
        self.memory.write(self.places, Kept(mass, classes, (1 - mass.sum(-1)).clamp_(min=0)), self.rows)


def _power(m: Tensor, exponent: float) -> Tensor:
    """The power of m, new; a general exponent takes five times as long as these."""
    if exponent == 1.0:
        return m.clone()
    if exponent == 1.5:
        return m.sqrt().mul_(m)
    return m * m if exponent == 2.0 else m.pow(exponent)
