"""The label that a finished run would train new inputs towards, by hand; and why some runs have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from labo import regularizers
from labo.experiment import saved_run
from labo.experiment.saved_run import SavedRun


def loaded_with(method: str, counts: list[int] | None = None, **options: Any) -> SavedRun:
    """A run of `method` as its run.json tells of it; nothing else of it is looked at."""
    about: dict[str, Any] = {"method": method, "settings": {"epochs": 1, **options}}
    return SavedRun(Path("nowhere"), about if counts is None else {**about, "class_counts": counts}, {})


LOGITS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0]])


def test_soft_labels_stand_on_the_predicted_class_where_they_need_one():
    found, told = saved_run.soft_labels(loaded_with("labo", beta=2.0), LOGITS)
    assert found is not None
    torch.testing.assert_close(found, (LOGITS.double() / 2).softmax(-1), atol=1e-6, rtol=0)
    assert "predicted" not in told
    found, told = saved_run.soft_labels(loaded_with("label_smoothing", convention="fairseq"), LOGITS)
    assert found is not None
    torch.testing.assert_close(found, torch.tensor([[0, 0.5, 0.5], [0.5, 0, 0.5]]).double())
    assert told.endswith("it depends on the true class, for which the predicted one stands.")
    found, _ = saved_run.soft_labels(loaded_with("unigram_smoothing", [1, 2, 1]), LOGITS)
    assert found is not None
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.5, 0.25]] * 2).double())


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("none", "No q*: method 'none' has no soft label."),
        ("online_smoothing", "No q*: method 'online_smoothing' needs epoch, which exists in training alone."),
        ("ls_plus", "No q*: method 'ls_plus' needs optimizer"),
        ("unigram_smoothing", "computes it from the class counts, which this run does not record"),
    ],
)
def test_methods_without_a_label_say_why(method: str, told: str):
    counts = None if method == "unigram_smoothing" else [1, 2, 1]
    found, sentence = saved_run.soft_labels(loaded_with(method, counts), LOGITS)
    assert found is None
    assert told in sentence


@pytest.mark.parametrize("method", regularizers.available())
def test_every_method_has_a_label_or_a_reason(method: str):
    found, told = saved_run.soft_labels(loaded_with(method, [1, 2, 1]), LOGITS)
    if found is None:
        assert told.startswith("No q*: ")
    else:
        torch.testing.assert_close(found.sum(-1), torch.ones(2).double())
