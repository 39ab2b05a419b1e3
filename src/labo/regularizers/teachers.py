"""Teachers: networks of finished runs, loaded for members that learn from one."""

from __future__ import annotations

from pathlib import Path

from torch import nn


def load(path: str | Path) -> nn.Module:
    """The trained network of a finished run, in evaluation mode.

    Args:
        path: the folder of `labo train`, or DIR/TASK/METHOD/SEED of a comparison.

    Raises:
        UserError: there is no finished run, or its files are damaged.
    """
    from labo.experiment import saved_run  # only when called: the family knows nothing of experiments

    return saved_run.load(Path(path)).model
