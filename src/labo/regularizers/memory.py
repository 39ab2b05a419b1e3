"""What members with a state share: a change counter, and limits on the size of their tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from labo.errors import UserError
from labo.regularizers.base import Regularizer

_BYTES = 4  # of a float32 number


class ChangeCounter(nn.Module):
    """Detects when a number that training counts up, the epoch or the step, has changed.

    `turns` counts the distinct values so far. Both are saved with the owner, and stay off the accelerator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.turns, self._last = 0, 0

    def advanced(self, number: int | Tensor) -> bool:
        """Whether `number` differs from that of the last call, or is the first."""
        new = int(number)
        if self.turns and new == self._last:
            return False
        self.turns, self._last = self.turns + 1, new
        return True

    def get_extra_state(self) -> Tensor:
        """What is saved, as a tensor, which every format can hold."""
        return torch.tensor([self.turns, self._last])

    def set_extra_state(self, state: Any) -> None:
        """Take what was saved."""
        self.turns, self._last = state.tolist()


def refuse_large(member: Regularizer, height: int, width: int, *, most: int, tables: int = 1) -> None:
    """Refuse tables of height x width float32 numbers where that is more than `most` and not allowed.

    Raises:
        UserError: it is; the message says how much memory it would take.
    """
    if height * width <= most or getattr(member, "allow_large", False):
        return
    what = "a table" if tables == 1 else f"{tables} tables"
    size = tables * height * width * _BYTES / 1e9
    raise UserError(
        f"Method '{member.name}' would keep {what} of {height} x {width} numbers, {size:.1f} GB; "
        "allow_large=True lets it."
    )


def refuse_other_size(member: Regularizer, what: str, known: tuple[int, ...], now: tuple[int, ...]) -> None:
    """Refuse to go on with something remembered of another size than this training needs.

    Raises:
        UserError: the sizes differ.
    """
    if known != now:
        raise UserError(
            f"Method '{member.name}' remembers a {what} of {_by(known)}, but this training needs one of {_by(now)}: "
            "what it remembers is of other classes or examples."
        )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)
