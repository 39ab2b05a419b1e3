"""LABO's prior from a memory: the sharpened running average of the predictions for each example."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from labo import checks, functional, inner, kernels, sparse
from labo.kernels import reference
from labo.kernels.largest import largest
from labo.kernels.options import Options
from labo.reduction import Rows
from labo.regularizers.prediction_memory import Kept, PredictionMemory, spread

# The default sharpness: lower with many classes.
MAX_CLASSES_SHARPENED, SHARP, LESS_SHARP = 50, 2.0, 1.5


class MemoryPrior(nn.Module):
    """The prior r = (w * m) ** sharpness, normalised, of each example, m from a `PredictionMemory`, w its `alignment`.

    The loss of an example with smoothed target t = (1 - epsilon) * target + epsilon / C is
    (1 - alpha) * CE(t, p) + alpha * V(logits; r), whose gradient is p - (1 - alpha) * t - alpha * q*. In training,
    the prediction is then added to the memory.

    Args:
        method: the name of the method, for errors.
        sharpness: above 0; None for 2 with up to 50 classes and 1.5 with more.
        epsilon: in [0, 1].
        decay, top, aligned: as in `PredictionMemory`.
    """

    def __init__(
        self,
        method: str,
        *,
        sharpness: float | None,
        epsilon: float,
        decay: float,
        top: int | None = None,
        aligned: bool | None = None,
    ) -> None:
        super().__init__()
        if sharpness is not None:
            checks.number("sharpness", sharpness, "(0, inf)")
        checks.number("epsilon", epsilon, "[0, 1]")
        self.sharpness, self.epsilon = checks.python_number(sharpness), checks.python_number(epsilon)
        if aligned is not None and not isinstance(aligned, bool):
            raise TypeError(f"Expected argument `aligned` to be a boolean, but got {aligned!r}.")
        self.memory = PredictionMemory(method, decay=decay, top=top, aligned=aligned)

    def options(self) -> dict[str, Any]:
        """The options and their values."""
        memory = {"decay": self.memory.decay, "epsilon": self.epsilon}
        memory |= {"top": self.memory.top, "aligned": self.memory.aligned}
        return {"sharpness": self.sharpness, **memory}

    @torch.no_grad()
    def priors(self, rows: Rows, examples: int) -> Tensor:
        """The priors (N, C) of the rows, in working precision; the uniform one for ignored rows."""
        self.memory.prepare(examples, rows)
        m = self._distributions(self.memory.places(rows, examples), rows)
        return self.sharpened(m, self._alignment(rows))

    def losses(
        self,
        rows: Rows,
        examples: int,
        alpha: float | Tensor,
        beta: float | Tensor,
        value: str,
        training: bool,
        *,
        labels: str | None = None,
    ) -> Tensor:
        """The loss of each row, (N,), in working precision; in training, the predictions are added to the memory.

        `labels` are None for the softmax, or of `labo.sparse`.
        """
        with torch.no_grad():
            places = self._visit(rows, examples, training)
            m = self._distributions(places, rows)
            prior = self.sharpened(m, self._alignment(rows))
        smoothed = functional.labo_losses(rows, functional.row_options(rows, self.epsilon, math.inf, None))
        if labels is not None:
            logits = inner.working(rows.logits)
            beta_rows, plugin = inner.over_rows("beta", beta, logits), value == "plugin"
            regularized = sparse.value_of_rows(logits, beta_rows, prior, labels, plugin=plugin)
            mass = reference.data_term(logits, rows.target, rows.weight if rows.has_probabilities else None)[1]
            regularized = regularized if mass is None else regularized * mass
        else:
            options = functional.row_options(rows, 1.0, beta, None, value)
            regularized = reference.row_losses(rows.logits, rows.target, **{**options.named(), "prior": prior})
        losses = reference.mix(smoothed, regularized, rows.per_row("alpha", alpha))
        if training:
            with torch.no_grad():
                self.memory.remember(places, m, inner.masked_softmax(inner.working(rows.logits)), rows)
        return losses

    def solver(self, rows: Rows, examples: int, alpha: float, training: bool) -> MemorySolver:
        """The fused implementation of the losses of these rows and their gradient, at beta = inf."""
        with torch.no_grad():
            places = self._visit(rows, examples, training)
            read = self.memory.read(places)
            return MemorySolver(self, rows, places, alpha, read, self._alignment(rows), training)

    def _visit(self, rows: Rows, examples: int, training: bool) -> Tensor:
        """The indices of the rows in the memory, after checking them and (in training) their labels."""
        self.memory.prepare(examples, rows)
        places = self.memory.places(rows, examples)
        if training:
            self.memory.start_round(places)
            self.memory.check_labels(places, rows)
        return places

    def _distributions(self, places: Tensor, rows: Rows) -> Tensor:
        return self.memory.distributions(places, rows.raw.shape[-1]).to(reference.working_dtype(rows.raw))

    def _alignment(self, rows: Rows) -> Tensor | None:
        """The alignment of m; None for probabilities as targets, which are not stored."""
        return None if rows.has_probabilities else self.memory.alignment

    def exponent(self, classes: int) -> float:
        """The sharpness for this number of classes."""
        if self.sharpness is not None:
            return self.sharpness
        return SHARP if classes <= MAX_CLASSES_SHARPENED else LESS_SHARP

    def sharpened(self, m: Tensor, alignment: Tensor | None) -> Tensor:
        """The priors of distributions m (N, C); rows of zeros stay zeros."""
        aligned = m if alignment is None else m * alignment.to(m.dtype)
        powered = _power(aligned, self.exponent(m.shape[-1]))
        return powered.div_(powered.sum(-1, keepdim=True).clamp_(min=torch.finfo(m.dtype).tiny))


class MemorySolver:
    """The losses of rows and their gradient at beta = inf, in few operations; see `labo.kernels.autograd`.

    The label of a row does not depend on its logits: it mixes target, uniform distribution and prior. The first call,
    in training, adds the predictions to the memory.
    """

    def __init__(
        self,
        prior: MemoryPrior,
        rows: Rows,
        places: Tensor,
        alpha: float,
        read: Kept | Tensor,
        alignment: Tensor | None,
        training: bool,
    ) -> None:
        self.prior, self.memory, self.rows, self.places, self.alpha = prior, prior.memory, rows, places, alpha
        self.read, self.alignment = read, alignment
        # Rows whose predictions are not yet in the memory: a second backward pass solves again.
        self.pending = torch.full((len(places),), training, device="cpu")
        self.updates_memory = False

    def of(self, part: slice | Tensor) -> MemorySolver:
        """The solver of a subset of the rows; calling it adds their predictions to the memory."""
        kept = None if self.rows.kept is None else self.rows.kept[part]
        if kept is not None and kept.device.type == "cpu" and bool(kept.all()):  # elsewhere looking would wait
            kept = None
        rows = replace(self.rows, raw=self.rows.raw[part], target=self.rows.target[part], kept=kept, _clean=[])
        read = Kept(*(value[part] for value in self.read)) if isinstance(self.read, Kept) else self.read[part]
        subset = MemorySolver(self.prior, rows, self.places[part], self.alpha, read, self.alignment, False)
        at = part if isinstance(part, slice) else part.cpu()
        subset.updates_memory = bool(self.pending[at].any())
        self.pending[at] = False
        return subset

    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        row_weights: Tensor,
        options: Options,
        *,
        gradient: bool,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Like `blocked.solve`; `out` may hold the gradient."""
        if bool(self.pending.any()):
            self.pending[:], self.updates_memory = False, True
        z = inner.working(logits.detach())
        if self.rows.kept is not None:
            z = torch.where(self.rows.kept.unsqueeze(-1), z, 0.0)
        if out is not None and (z.data_ptr() != out.data_ptr() or z.dtype != out.dtype):
            out = None
        solved = None
        if isinstance(self.read, Kept) and z.device.type == "cpu" and target.dim() == 1:
            solved = self._from_kept(z, self.read, row_weights, gradient, out)
        losses, grad_logits = solved or self._from_whole(z, row_weights, options.weight, gradient)
        self.updates_memory = False
        return losses, None if grad_logits is None else grad_logits.to(logits.dtype)

    def row_losses(self, logits: Tensor, weight: Tensor | None) -> Tensor:
        """The losses (N,) by the reference formulas, differentiable in the logits to any order."""
        z = inner.working(logits)
        return reference.cross_entropy(self._label(z.detach(), weight)[0], reference.masked_log_softmax(z))

    def _whole(self, classes: int, dtype: torch.dtype) -> Tensor:
        return (spread(self.read, classes) if isinstance(self.read, Kept) else self.read).to(dtype)

    def _prior(self, z: Tensor) -> Tensor:
        return self.prior.sharpened(self._whole(z.shape[-1], z.dtype), self.alignment)

    def _label(self, z: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """(labels (N, C), 0 at masked classes; their mass (N, 1))."""
        limit = inner.over_rows("beta", math.inf, z)
        label = inner.labels_of_rows(z, limit, self._prior(z)).mul_(self.alpha)
        label += inner.labels_of_rows(z, limit, None).mul_((1 - self.alpha) * self.prior.epsilon)
        target = reference.target_mass(z, self.rows.target, weight)
        mass = target.sum(-1, keepdim=True)
        return label.mul_(mass).add_(target, alpha=(1 - self.alpha) * (1 - self.prior.epsilon)), mass

    def _from_whole(
        self, z: Tensor, row_weights: Tensor, weight: Tensor | None, gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(losses times weights, the gradient of their sum), from full distributions."""
        solved = self._at_once(z) if z.device.type == "cpu" and not self.rows.has_probabilities else None
        if solved is None:  # probabilities, masked classes, or NaN
            label, mass = self._label(z, weight)
            losses, p = reference.cross_entropy(label, reference.masked_log_softmax(z)), inner.masked_softmax(z)
        else:
            (losses, p, label), mass = solved, None
        grad_logits = None
        if gradient:
            grad_logits = (p if mass is None else p * mass).sub(label).mul_(row_weights.unsqueeze(-1))
            if mass is not None:
                grad_logits = torch.where((row_weights == 0).unsqueeze(-1), 0.0, grad_logits)
        if self.updates_memory:
            self.memory.remember(self.places, self._whole(z.shape[-1], z.dtype), p, self.rows)
        return torch.where(row_weights == 0, 0.0, losses * row_weights), grad_logits

    def _at_once(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """(losses, p, label) of class indices with finite logits; None otherwise."""
        label = self._prior(z).mul_(self.alpha)
        label.add_((1 - self.alpha) * self.prior.epsilon / max(1, z.shape[-1]))
        share = (1 - self.alpha) * (1 - self.prior.epsilon)
        label.scatter_(-1, self.rows.target.unsqueeze(-1), share, reduce="add")
        log_p = torch.log_softmax(z, -1)
        losses = torch.linalg.vecdot(label, log_p).neg_()
        return (losses, log_p.exp_(), label) if math.isfinite(losses.sum().item()) else None

    def _from_kept(
        self, z: Tensor, kept: Kept, row_weights: Tensor, gradient: bool, out: Tensor | None
    ) -> tuple[Tensor, Tensor | None] | None:
        """Like `_from_whole`, from the largest entries of many classes; None if a class is masked.

        The label is uniform except at the kept classes and the target. So the fused smoothed cross-entropy computes
        losses and gradient, and a few entries are corrected.
        """
        classes = z.shape[-1]
        total = z.sum(-1)
        if not math.isfinite(total.sum().item()):
            return None
        others = max(1, classes - kept.mass.shape[1])
        kept = Kept(kept.mass.to(z.dtype), kept.classes, kept.rest.to(z.dtype))
        sharpness = self.prior.exponent(classes)
        entries, each_other = _power(kept.mass, sharpness), _power(kept.rest / others, sharpness)
        norm = (entries.sum(-1) + others * each_other).clamp_(min=torch.finfo(entries.dtype).tiny)
        entries, each_other = entries / norm.unsqueeze(-1), each_other / norm
        uniform = ((1 - self.alpha) * self.prior.epsilon + self.alpha * classes * each_other).clamp_(0, 1)
        options = Options(uniform, math.inf)
        correction = (entries - each_other.unsqueeze(-1)).mul_(self.alpha)
        at_target = (1 - self.alpha) * (1 - self.prior.epsilon) - (1 - uniform)
        index = self.rows.target.unsqueeze(-1)
        # Read before the gradient, which may overwrite the logits.
        z_kept, z_target = z.gather(-1, kept.classes), z.gather(-1, index).squeeze(-1)
        top = largest(z, kept.mass.shape[1]) if self.updates_memory else None
        ignored = torch.logsumexp(z, -1) if self.updates_memory and not bool(row_weights.all()) else None
        solve = kernels.choose("auto", (z,), self.rows.target, options) or reference.solve
        losses, grad_logits = solve(z, self.rows.target, row_weights, options, gradient=gradient, out=out)
        if top is not None:
            counted = row_weights != 0
            row_losses = losses / torch.where(counted, row_weights, 1.0)
            plain = row_losses + (1 - uniform) * z_target + uniform * total / classes
            lse = plain if ignored is None else torch.where(counted, plain, ignored)
            self._remember_kept(kept, top, z_kept, lse.unsqueeze(-1), others)
        losses = losses - row_weights * ((correction * z_kept).sum(-1) + at_target * z_target)
        if grad_logits is not None:
            grad_logits.scatter_add_(-1, kept.classes, correction.mul_(-row_weights.unsqueeze(-1)))
            grad_logits.scatter_add_(-1, index, (-row_weights * at_target).unsqueeze(-1))
        return losses, grad_logits

    def _remember_kept(
        self, kept: Kept, largest_logits: tuple[Tensor, Tensor], z_kept: Tensor, lse: Tensor, others: int
    ) -> None:
        """Add the predictions exp(z - lse) to the memory; its new entries are old ones or the largest predictions."""
        decay, count = self.memory.decay, kept.mass.shape[1]
        old = kept.mass * decay + (z_kept - lse).exp_().mul_(1 - decay)
        z_top, top = largest_logits
        new = (z_top - lse).exp_().mul_(1 - decay) + decay * (kept.rest / others).unsqueeze(-1)
        known = (top.unsqueeze(-1) == kept.classes.unsqueeze(-2)).any(-1)
        mass, at = torch.cat([old, new.masked_fill_(known, -1.0)], -1).topk(count)
        classes = torch.cat([kept.classes, top], -1).gather(-1, at)
        self.memory.write(self.places, Kept(mass, classes, (1 - mass.sum(-1)).clamp_(min=0)), self.rows)


def _power(m: Tensor, exponent: float) -> Tensor:
    """The power m ** exponent as a new tensor; `pow` takes five times as long as the special cases."""
    if exponent == 1.0:
        return m.clone()
    if exponent == 1.5:
        return m.sqrt().mul_(m)
    return m * m if exponent == 2.0 else m.pow(exponent)
