"""A running average of the predictions for every training example."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from labo import checks, distributed
from labo.errors import UserError
from labo.reduction import Rows
from labo.regularizers.late_buffers import LateBuffers

# With more classes than this, the `TOP` largest entries of each distribution are kept.
MAX_WHOLE_CLASSES = 256
TOP = 16
_UNSEEN = -1
_MAX_INT16 = 2**15 - 1
# A class with less of the memory's mass than this counts as if it had as much.
_MIN_SHARE = 1e-4
# Classes are balanced if none has more than this many times the labels of another.
_MAX_IMBALANCE = 2.0


class Kept(NamedTuple):
    """Truncated distributions: `mass` (N, k) float32 at `classes` (N, k).

    `rest` (N,) is the total mass of all other classes.
    """

    mass: Tensor
    classes: Tensor
    rest: Tensor


class PredictionMemory(LateBuffers):
    """The running average m <- decay * m + (1 - decay) * p of each example, updated at each visit.

    With at most `MAX_WHOLE_CLASSES` classes all of m is kept, else its `top` largest entries and the mass of the rest,
    which counts as spread evenly; both in half precision. The place of an example is its index in the training data.
    If an example occurs twice in a batch, its last prediction counts. Processes that train together keep identical
    memories: each adds the predictions of all.

    The label of each example is stored too. An example whose label differs from the stored one raises an error: the
    memory belongs to other data, or the indices do not follow the data.

    Args:
        method: the name of the method, for errors.
        decay: in [0, 1).
        top: number of entries of m to keep; None for all or `TOP`, depending on the number of classes.
        from_zeros: whether m starts as zeros instead of the uniform distribution.
        aligned: whether there is an `alignment`, which needs all classes; None for whenever all are kept and the labels
            are balanced.
    """

    values: Tensor | None  # (examples + 1, k) float16; the last row takes what is written for ignored rows
    classes: Tensor | None  # (examples + 1, k) int16 or int32; None where all classes are kept
    rest: Tensor | None  # (examples + 1,) float16; None where all classes are kept
    labels: Tensor | None  # (examples + 1,) int32
    # (C,) float32: times this, m is in the mean distributed as the labels are, by the last round; None if not aligned.
    alignment: Tensor | None
    visited: Tensor | None  # (examples + 1,) bool: in this round

    def __init__(
        self,
        method: str,
        *,
        decay: float,
        top: int | None = None,
        from_zeros: bool = False,
        aligned: bool | None = False,
    ) -> None:
        super().__init__()
        checks.number("decay", decay, "[0, 1)")
        if top is not None:
            checks.integer("top", top)
        self.name = method
        self.decay, self.top = checks.python_number(decay), checks.python_number(top)
        self.from_zeros, self.aligned = from_zeros, aligned
        for name in ("values", "classes", "rest", "labels", "alignment", "visited"):
            self.register_buffer(name, None)

    def prepare(self, examples: int, rows: Rows) -> None:
        """Allocate the memory if necessary; an error if it belongs to other examples or classes."""
        size = rows.raw.shape[-1]
        kept = self._kept(size)
        if self.values is None:
            self._allocate(examples, size, kept, rows.raw.device)
        assert self.values is not None
        assert self.labels is not None
        if self.values.device != rows.raw.device:
            self.to(rows.raw.device)
        known = (len(self.values) - 1, self.values.shape[1], self.classes is None)
        if known != (examples, kept, kept == size):
            raise UserError(
                f"Method '{self.name}' has a memory of {known[0]} examples with {known[1]} entries each, but this "
                f"training has {examples} with {kept}: the memory belongs to other data."
            )
        if self.aligned and self.classes is not None:
            raise UserError(
                f"Expected aligned=False with {kept} of {size} classes in the memory of method '{self.name}': aligning "
                "it needs all of them."
            )
        if self.alignment is None and self.aligned is not False and self.classes is None:
            self.alignment = torch.ones(size, device=self.values.device)
            self.visited = torch.zeros(examples + 1, dtype=torch.bool, device=self.values.device)

    @torch.no_grad()
    def fill(self, distributions: Tensor) -> None:
        """Replace m of all examples by distributions (N, C)."""
        examples, size = distributions.shape
        kept = self._kept(size)
        self._allocate(examples, size, kept, distributions.device)
        assert self.values is not None
        if self.classes is None:
            self.values[:-1] = distributions
            return
        assert self.rest is not None
        mass, at = distributions.topk(kept)
        self.values[:-1], self.classes[:-1] = mass, at
        self.rest[:-1] = (1 - mass.sum(-1)).clamp(min=0)

    def _kept(self, classes: int) -> int:
        """The number of entries that are kept of a distribution."""
        wanted = self.top if self.top is not None else classes if classes <= MAX_WHOLE_CLASSES else TOP
        return min(wanted, classes)

    def _allocate(self, examples: int, size: int, kept: int, device: torch.device) -> None:
        start = 0.0 if self.from_zeros else 1 / size
        self.values = torch.full((examples + 1, kept), start, dtype=torch.float16, device=device)
        self.values[-1] = 0.0
        self.labels = torch.full((examples + 1,), _UNSEEN, dtype=torch.int32, device=device)
        if kept < size:
            numbers = torch.int16 if size <= _MAX_INT16 else torch.int32
            self.classes = torch.arange(kept, dtype=numbers, device=device).repeat(examples + 1, 1)
            rest = 0.0 if self.from_zeros else 1 - kept / size
            self.rest = torch.full((examples + 1,), rest, dtype=torch.float16, device=device)

    def start_round(self, places: Tensor) -> None:
        """Align m if an example at `places` (N,) was visited since it was aligned last: in each epoch, once.

        So parts of a batch, and processes that train together, have the alignment of the whole batch.
        """
        if self.alignment is None or self.visited is None:
            return
        places = distributed.all_gather(places)
        again = self.visited[places].any()
        if places.device.type == "cpu" and not checks.traced(places):
            if again:
                self.alignment = self._aligned()
                self.visited.zero_()
        else:  # where looking would wait, or cannot be
            self.alignment = torch.where(again, self._aligned(), self.alignment)
            self.visited &= ~again

    def _aligned(self) -> Tensor:
        """The class shares of the stored labels over those of m, (C,) float32; by default 1 if they are not balanced.

        Examples without a label count as spread over all classes, and a class without labels as having one.
        """
        assert self.values is not None
        assert self.labels is not None
        values, labels = self.values[:-1], self.labels[:-1]
        counts = values.new_zeros(values.shape[1] + 1, dtype=torch.float32)
        counts.scatter_add_(0, labels.long() - _UNSEEN, counts.new_ones(1).expand(len(labels)))
        shares = (counts[1:] + counts[0] / values.shape[1]).clamp(min=1.0)
        own = values.sum(0, dtype=torch.float32)
        alignment = shares / shares.sum() / (own / own.sum()).clamp(min=_MIN_SHARE)
        if self.aligned is None:
            alignment = torch.where(shares.amax() <= _MAX_IMBALANCE * shares.amin(), alignment, 1.0)
        return alignment

    def places(self, rows: Rows, examples: int) -> Tensor:
        """The place of each row, (N,) int64; the scratch row for ignored rows.

        Raises:
            UserError: `indices` are not integers, do not fit the rows, or are out of range.
        """
        places = checks.as_tensor(rows.given["indices"])
        if places.dtype.is_floating_point or places.dtype in (torch.bool, torch.complex64, torch.complex128):
            raise UserError(f"Expected `indices` to be whole numbers, but got {places.dtype}.")
        if places.numel() != len(rows.raw) or (places.dim() > 1 and places.shape != rows.shape):
            raise UserError(
                f"Expected `indices` to be {len(rows.raw)} whole numbers, one for each target, but got shape "
                f"{tuple(places.shape)}."
            )
        places = places.reshape(-1).to(rows.raw.device).long()
        if rows.kept is not None:
            places = torch.where(rows.kept, places, examples)
        self._check_range(places, examples, rows.kept)
        return places

    def _check_range(self, places: Tensor, examples: int, kept: Tensor | None) -> None:
        if checks.traced(places) or not len(places):
            return
        limit = examples if kept is None else examples + 1
        sentence = f"Expected `indices` of {examples} training examples, but got {{}}."
        if places.device.type != "cpu":
            checks.require((places >= 0) & (places < limit), sentence.format("others"))
            return
        low, high = (int(bound) for bound in places.aminmax())
        if low < 0:
            raise UserError(sentence.format(low))
        if high >= limit:
            raise UserError(sentence.format(f"{high}: examples cannot be added later"))

    def check_labels(self, places: Tensor, rows: Rows) -> None:
        """Raise an error if the label of an example has changed since its last visit; store new labels."""
        assert self.labels is not None
        if rows.has_probabilities or checks.traced(places):
            return
        known, target = self.labels.index_select(0, places), rows.target.to(torch.int32)
        on_cpu = places.device.type == "cpu"
        if on_cpu and torch.equal(known, target) and distributed.world_size() == 1:
            return
        if rows.kept is not None:
            target = torch.where(rows.kept, target, _UNSEEN)
        changed = (known != target) & (known != _UNSEEN)
        if on_cpu and bool(changed.any()):
            at = int(changed.nonzero()[0, 0])
            raise UserError(
                f"Method '{self.name}' has stored example {int(places[at])} with label {int(known[at])}, but now it "
                f"has label {int(target[at])}: the memory belongs to other data, or `indices` do not follow the data."
            )
        if not on_cpu:
            checks.require(~changed, f"Method '{self.name}' has stored examples with other labels.")
        self.labels[distributed.all_gather(places)] = distributed.all_gather(target)

    def kept(self, places: Tensor) -> Kept:
        """The kept entries of m at `places` (N,), if the memory does not keep all classes."""
        assert self.values is not None
        assert self.classes is not None
        assert self.rest is not None
        return Kept(self.values[places].float(), self.classes[places].long(), self.rest[places].float())

    def read(self, places: Tensor) -> Kept | Tensor:
        """The stored m at `places` (N,): (N, C) float32 if all classes are kept, else the kept entries."""
        assert self.values is not None
        return self.values.index_select(0, places).float() if self.classes is None else self.kept(places)

    def distributions(self, places: Tensor, classes: int) -> Tensor:
        """The distributions m at `places` (N,), as (N, C) float32."""
        kept = self.read(places)
        return spread(kept, classes) if isinstance(kept, Kept) else kept

    def all_distributions(self, examples: int, classes: int) -> Tensor:
        """The distributions m of all examples, (N, C) float32.

        Raises:
            RuntimeError: the memory belongs to other examples or classes.
        """
        kept = self._kept(classes)
        shape = None if self.values is None else tuple(self.values.shape)
        if shape != (examples + 1, kept) or (self.classes is None) != (kept == classes):
            raise RuntimeError("The memory belongs to other examples or classes.")
        assert self.values is not None
        return self.distributions(torch.arange(examples, device=self.values.device), classes)

    def remember(self, places: Tensor, before: Tensor, p: Tensor, rows: Rows) -> None:
        """Update m at `places` from `before` (N, C) with predictions p (N, C)."""
        after = torch.lerp(p, before, self.decay).float()
        if self.classes is None:
            self.write(places, Kept(after, places, places), rows)
        else:
            assert self.values is not None
            mass, at = after.topk(self.values.shape[1])
            self.write(places, Kept(mass, at, (after.sum(-1) - mass.sum(-1)).clamp(min=0)), rows)

    def write(self, places: Tensor, new: Kept, rows: Rows) -> None:
        """Write `new` entries at `places`, and those of all other processes."""
        if checks.transformed():
            raise UserError(
                f"Method '{self.name}' stores predictions, which transforms of torch.func do not allow: use backward() "
                "for gradients, or evaluation mode (.eval())."
            )
        assert self.values is not None
        written = [(self.values, new.mass.to(torch.float16))]
        if self.classes is not None and self.rest is not None:
            written += [(self.classes, new.classes.to(self.classes.dtype)), (self.rest, new.rest.to(torch.float16))]
        if distributed.world_size() > 1:
            places = distributed.all_gather(places)
            written = [(buffer, distributed.all_gather(value)) for buffer, value in written]
        # Duplicate places in one write have no defined order, so all of them write the value of the last.
        order = places.argsort(stable=True)
        ordered = places[order]
        last = order[torch.searchsorted(ordered, ordered, right=True) - 1]
        for buffer, value in written:
            buffer.index_copy_(0, ordered, value.index_select(0, last))
        if rows.kept is not None or distributed.world_size() > 1:
            self.values[-1] = 0.0
        if self.visited is not None:
            self.visited[places] = True
            self.visited[-1] = False

    @property
    def nbytes(self) -> int:
        """The size of the memory in bytes."""
        return sum(buffer.nbytes for buffer in self.buffers())


def spread(kept: Kept, classes: int) -> Tensor:
    """The distributions (N, C), with `rest` spread evenly over the classes that are not kept."""
    each_other = kept.rest / max(1, classes - kept.mass.shape[1])
    return each_other.unsqueeze(-1).expand(-1, classes).scatter(-1, kept.classes, kept.mass)
