"""What a record says of a trained network, and what is kept of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labo.experiment import folds
from labo.experiment.judges import Judge, NoNumbersError
from labo.experiment.trial import MEMORY, WEIGHTS, Trial
from labo.storage import read_lines
from labo.training import checkpoints
from labo.training.curve import DivergedError


def failed(failure: DivergedError) -> dict[str, Any]:
    """What a record says of a loss that was no number."""
    return {"metrics": {}, "failed": {"step": failure.step, "reason": failure.reason}}


def results(
    trial: Trial, judge: Judge, model: Any, loss: Any, splits: Any, held_out: Any, step: int, folder: Path
) -> dict[str, Any]:
    """What a record says of a trained network; what is kept of it is written."""
    notes: list[str] = []
    try:
        if held_out is not None:
            return {"held_out": folds.keep(model, held_out, folder)}
        if trial.tuning:
            validation = judge.for_tuning(model, splits.validation)
            signed = {name: told for name, told in judge.signatures().items() if name in validation}
            return {"validation": validation, **({"signatures": signed} if signed else {})}
        # First the weights: what goes wrong in measuring shall not cost the training.
        checkpoints.save_weights(model, folder / WEIGHTS)
        memory = loss.regularizer.prediction_memory
        if memory is not None and not splits.sequences:
            checkpoints.save_tensors(memory.state_dict(), folder / MEMORY)
            notes = _signs(memory, splits, folder)
        found = judge.at_the_end(model, loss, splits, folder)
    except NoNumbersError:
        for file in (WEIGHTS, MEMORY):
            (folder / file).unlink(missing_ok=True)  # a failed run keeps none
        return failed(DivergedError(step, "the trained network gives logits that are no numbers"))
    return {**found, "step": step, **({"notes": notes} if notes else {})}


def _signs(memory: Any, splits: Any, folder: Path) -> list[str]:
    """What looks wrong with what a method remembers of the training examples."""
    from labo.outer import health

    m = memory.all_distributions(len(splits.train), len(splits.classes)).cpu()
    return health.signs(m, splits.train.target, splits.classes, read_lines(folder / "curve.jsonl"))
