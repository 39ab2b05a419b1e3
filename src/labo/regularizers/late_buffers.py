"""Modules whose buffers are made by the first batch, and taken from a checkpoint as they come."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from labo.errors import UserError


class LateBuffers(nn.Module):
    """A module whose buffers may be None until training fills them; loading a state gives them its shapes.

    `name` is the method that they belong to, for errors.
    """

    name: str = ""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, mine in [*self._buffers.items(), *self._parameters.items()]:
            saved = state_dict.get(prefix + name)
            if saved is None:
                continue
            if mine is not None and mine.shape != saved.shape:
                raise UserError(
                    f"The saved `{name}` of method '{self.name}' has the shape {tuple(saved.shape)}, but here it has "
                    f"{tuple(mine.shape)}: it was saved for other classes or examples."
                )
            if mine is None and name in self._buffers:
                self._buffers[name] = torch.empty_like(saved)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
