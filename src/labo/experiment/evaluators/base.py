"""The interface of evaluators, which measure a network every epoch, for tuning and after training."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

# Task.kind -> "module:class"
_REGISTRY = {
    "classification": "labo.experiment.evaluators.classification:ClassificationEvaluator",
    "translation": "labo.experiment.evaluators.translation:TranslationEvaluator",
}


class Evaluator(ABC):
    """Measures the networks of one run.

    Args:
        preprocessing, files: of the splits.
        settings: of the training, with those of decoding.
    """

    def __init__(
        self, preprocessing: Mapping[str, Any], files: Mapping[str, bytes], settings: Mapping[str, Any]
    ) -> None:
        self.preprocessing, self.files, self.settings = preprocessing, files, settings

    @abstractmethod
    def validate(self, model: nn.Module, examples: Any, *, best: bool) -> tuple[dict[str, float], float]:
        """(metrics of the validation split for the curve, the value that the best epoch minimizes).

        The value is needed with `best` alone.

        Raises:
            NonFiniteLogitsError: the logits are NaN or infinite.
        """

    @abstractmethod
    def tuning_metrics(self, model: nn.Module, examples: Any) -> dict[str, float]:
        """The metrics of the validation split by which settings are chosen.

        Raises:
            NonFiniteLogitsError: the logits are NaN or infinite.
        """

    @abstractmethod
    def test_metrics(self, model: nn.Module, loss: Any, splits: Any, folder: Path) -> dict[str, Any]:
        """The "metrics" of the test split and what else a record says of it; writes the data of the figures.

        Raises:
            NonFiniteLogitsError: the logits are NaN or infinite.
        """

    @abstractmethod
    def scores(self, model: nn.Module, examples: Any, fitted: Mapping[str, float]) -> dict[str, float]:
        """The metrics of any examples; "temperature" and other parameters that validation gave are in `fitted`."""

    def signatures(self) -> dict[str, str]:
        """The signatures of metrics that have several implementations, by metric."""
        return {}

    def notes(self, model: nn.Module, examples: Any, what: str) -> tuple[str, ...]:
        """Sentences for the user about the scores of examples, which are called `what`."""
        return ()

    def examples(self, read: Any) -> Any:
        """The result of a task's `read_examples`, ready to be measured."""
        return read


def make_evaluator(
    kind: str, preprocessing: Mapping[str, Any], files: Mapping[str, bytes], settings: Mapping[str, Any]
) -> Evaluator:
    """The evaluator of a kind of task."""
    module, _, name = _REGISTRY[kind].partition(":")
    return getattr(importlib.import_module(module), name)(preprocessing, files, settings)
