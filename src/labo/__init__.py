"""Training with label regularization, and LABO: soft labels that solve the inner problem of a bi-level one."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labo import functional, inner, modules, regularizers
    from labo.functional import label_regularized_cross_entropy, labo_cross_entropy, linear_labo_cross_entropy
    from labo.indexed import IndexedDataset
    from labo.inner import inner_value, optimal_labels
    from labo.kernels import implementations
    from labo.kernels.statistics import LossStatistics
    from labo.kernels.vocab_parallel import vocab_parallel_labo_cross_entropy
    from labo.kernels.vocab_parallel_linear import vocab_parallel_linear_labo_cross_entropy
    from labo.modules import LABOLoss, LinearLABOLoss
    from labo.outer.cross_fit import cross_fit
    from labo.outer.learn import learn_labels
    from labo.regularized_loss import LabelRegularizedLoss

__version__ = "0.1.0"

_LAZY_ATTRIBUTES = {
    "optimal_labels": "inner",
    "inner_value": "inner",
    "labo_cross_entropy": "functional",
    "linear_labo_cross_entropy": "functional",
    "label_regularized_cross_entropy": "functional",
    "LABOLoss": "modules",
    "LinearLABOLoss": "modules",
    "LabelRegularizedLoss": "regularized_loss",
    "implementations": "kernels",
    "LossStatistics": "kernels.statistics",
    "vocab_parallel_labo_cross_entropy": "kernels.vocab_parallel",
    "vocab_parallel_linear_labo_cross_entropy": "kernels.vocab_parallel_linear",
    "IndexedDataset": "indexed",
    "cross_fit": "outer.cross_fit",
    "learn_labels": "outer.learn",
}
_SUBMODULES = ("inner", "functional", "modules", "kernels", "regularizers")

__all__ = [
    "IndexedDataset",
    "LABOLoss",
    "LabelRegularizedLoss",
    "LinearLABOLoss",
    "LossStatistics",
    "cross_fit",
    "functional",
    "implementations",
    "inner",
    "inner_value",
    "label_regularized_cross_entropy",
    "labo_cross_entropy",
    "learn_labels",
    "linear_labo_cross_entropy",
    "modules",
    "optimal_labels",
    "regularizers",
    "vocab_parallel_labo_cross_entropy",
    "vocab_parallel_linear_labo_cross_entropy",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import labo` is quick."""
    if name in _SUBMODULES:
        return importlib.import_module(f"labo.{name}")
    if name not in _LAZY_ATTRIBUTES:
        raise AttributeError(f"module 'labo' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"labo.{_LAZY_ATTRIBUTES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
