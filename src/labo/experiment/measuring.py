"""What a record says of a trained network, and what is kept of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labo.experiment import checkpoint, folds
from labo.experiment.judges import Judge, NoNumbersError
from labo.experiment.trainer import DivergedError
from labo.experiment.trial import MEMORY, WEIGHTS, Trial


def failed(failure: DivergedError) -> dict[str, Any]:
    """What a record says of a loss that was no number."""
    return {"metrics": {}, "failed": {"step": failure.step, "reason": failure.reason}}


def results(
    trial: Trial, judge: Judge, model: Any, loss: Any, splits: Any, held_out: Any, step: int, folder: Path
) -> dict[str, Any]:
    """What a record says of a trained network; what is kept of it is written."""
    try:
        if held_out is not None:
            return {"held_out": folds.keep(model, held_out, folder)}
        if trial.tuning:
            validation = judge.for_tuning(model, splits.validation)
            signed = {name: told for name, told in judge.signatures().items() if name in validation}
            return {"validation": validation, **({"signatures": signed} if signed else {})}
        # First the weights: what goes wrong in measuring shall not cost the training.
        checkpoint.save_weights(model, folder / WEIGHTS)
        memory = loss.regularizer.prediction_memory
        if memory is not None and not splits.sequences:
            checkpoint.save_tensors(memory.state_dict(), folder / MEMORY)
        found = judge.at_the_end(model, loss, splits, folder)
    except NoNumbersError:
        for file in (WEIGHTS, MEMORY):
            (folder / file).unlink(missing_ok=True)  # a failed run keeps none
        return failed(DivergedError(step, "the trained network gives logits that are no numbers"))
    return {**found, "step": step}
