"""The teacher of a trial, for methods that need one: a finished run of the same data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from labo.errors import UserError
from labo.experiment import saved_run
from labo.experiment.run_trial import Trial


def teach(trial: Trial, regularizer: Any, splits: Any) -> float:
    """Give the method its teacher, if it needs one; the seconds that it was trained for."""
    if "teacher" not in regularizer.missing:
        return 0.0
    if not trial.teacher_folder:
        raise UserError(f"Method '{trial.method}' needs a teacher: name the folder of a finished run with --teacher.")
    run = saved_run.load(Path(trial.teacher_folder))
    _refuse_other_data(trial, splits, run)
    regularizer.provide(teacher=run.model)
    return float(run.record["seconds"])


def _refuse_other_data(trial: Trial, splits: Any, run: Any) -> None:
    """Refuse a teacher of other data, or of another split: it may have learnt what this run is tested on."""
    here = {"task": trial.task, "data": trial.data, "seed": trial.seed, "classes": list(splits.classes)}
    for key, value in here.items():
        if run.about[key] != value:
            change = "" if key in ("data", "classes") else f" ({run.about[key]}, here {value})"
            raise UserError(f"The teacher in '{run.folder}' is of another {key}{change}: train one as this run is.")
    if json.dumps(run.about["preprocessing"]) != json.dumps(splits.preprocessing):
        raise UserError(
            f"The teacher in '{run.folder}' was trained on inputs that were prepared otherwise: train one with the "
            "options of this task."
        )
