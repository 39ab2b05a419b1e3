"""Helpers for members with state: a change counter, and limits on the size of tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from labo.errors import UserError
from labo.regularizers.base import Regularizer

_BYTES = 4  # per float32 number


class ChangeCounter(nn.Module):
    """Detects when a counter of training (the epoch or the step) has changed.

    `turns` is the number of changes so far. The state is saved with the owner, and never moves to an accelerator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.turns, self._last = 0, 0

    def advanced(self, number: int | Tensor) -> bool:
        """Whether `number` differs from that of the last call; True for the first call."""
        new = int(number)
        if self.turns and new == self._last:
            return False
        self.turns, self._last = self.turns + 1, new
        return True

    def get_extra_state(self) -> Tensor:
        """The state as a tensor, which every checkpoint format can hold."""
        return torch.tensor([self.turns, self._last], device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """Restore a saved state."""
        self.turns, self._last = state.tolist()


def refuse_large(member: Regularizer, height: int, width: int, *, most: int, tables: int = 1) -> None:
    """Raise an error if a height x width float32 table exceeds `most` numbers, unless the member allows it.

    Raises:
        UserError: the table is too large; the message gives the memory it would take.
    """
    if height * width <= most or getattr(member, "allow_large", False):
        return
    description = "a table" if tables == 1 else f"{tables} tables"
    size = tables * height * width * _BYTES / 1e9
    raise UserError(
        f"Method '{member.name}' would keep {description} of {height} x {width} numbers, {size:.1f} GB; "
        "allow_large=True permits it."
    )


def refuse_other_size(member: Regularizer, what: str, known: tuple[int, ...], now: tuple[int, ...]) -> None:
    """Raise an error if the size of saved state does not fit this training.

    Raises:
        UserError: the sizes differ.
    """
    if known != now:
        raise UserError(
            f"Method '{member.name}' has stored a {what} of {_dimensions(known)}, but this training needs one of "
            f"{_dimensions(now)}: its state is for other classes or examples."
        )


def _dimensions(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)
