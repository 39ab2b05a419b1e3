"""What a judge is: it measures a network every epoch, to choose settings, and at the end."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from labo.training.curve import NonFiniteLogitsError

NoNumbersError = NonFiniteLogitsError
# Task.kind -> "module:class"
_HOMES = {
    "classification": "labo.experiment.judges.classification:Classification",
    "translation": "labo.experiment.judges.translation:Translation",
}


class Judge(ABC):
    """Measures the networks of one run.

    Args:
        preprocessing, files: of the splits.
        settings: of the training; those that say how it is measured are among them.
    """

    def __init__(
        self, preprocessing: Mapping[str, Any], files: Mapping[str, bytes], settings: Mapping[str, Any]
    ) -> None:
        self.preprocessing, self.files, self.settings = preprocessing, files, settings

    @abstractmethod
    def of_epoch(self, model: nn.Module, examples: Any, *, best: bool) -> tuple[dict[str, float], float]:
        """(what the curve says of the validation split, what the best epoch has least of; with `best` alone).

        Raises:
            NoNumbersError: there is nothing to measure.
        """

    @abstractmethod
    def for_tuning(self, model: nn.Module, examples: Any) -> dict[str, float]:
        """What settings are chosen by, of the validation split.

        Raises:
            NoNumbersError: there is nothing to measure.
        """

    @abstractmethod
    def at_the_end(self, model: nn.Module, loss: Any, splits: Any, folder: Path) -> dict[str, Any]:
        """A record's "metrics", and what else it says of the test split; what the report draws is written.

        Raises:
            NoNumbersError: there is nothing to measure.
        """

    @abstractmethod
    def scores(self, model: nn.Module, examples: Any, temperature: float) -> dict[str, float]:
        """The measures of any examples, raw and ("…_scaled") at a temperature fitted before."""

    def signatures(self) -> dict[str, str]:
        """How measures were made that others make otherwise, by their names."""
        return {}

    def notes(self, model: nn.Module, examples: Any, what: str) -> tuple[str, ...]:
        """Sentences that the user should see beside the scores of examples, which are called `what`."""
        return ()

    def examples(self, read: Any) -> Any:
        """What a task's `read_examples` gave, as it is measured."""
        return read


def judge_of(
    kind: str, preprocessing: Mapping[str, Any], files: Mapping[str, bytes], settings: Mapping[str, Any]
) -> Judge:
    """The judge of a kind of task."""
    module, _, name = _HOMES[kind].partition(":")
    return getattr(importlib.import_module(module), name)(preprocessing, files, settings)
