"""Modules whose buffers are created by the first batch or by a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from labo.errors import UserError


class LateBuffers(nn.Module):
    """A module whose buffers may be None until the first batch; a loaded state determines their shapes.

    `name` is the method that owns the buffers, for errors.
    """

    name: str = ""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, current in [*self._buffers.items(), *self._parameters.items()]:
            saved = state_dict.get(prefix + name)
            if saved is None:
                continue
            if current is not None and current.shape != saved.shape:
                raise UserError(
                    f"The saved `{name}` of method '{self.name}' has shape {tuple(saved.shape)}, but this one has "
                    f"{tuple(current.shape)}: it was saved for other classes or examples."
                )
            if current is None and name in self._buffers:
                self._buffers[name] = torch.empty_like(saved)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
