"""A finished run, read back: its network, its task, its predictions and the soft labels of its method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labo import tasks
from labo.errors import UserError, first_line, unknown
from labo.experiment import settings as flat
from labo.experiment.evaluators import make_evaluator
from labo.experiment.evaluators.classification import predict
from labo.outer.trust import Decision
from labo.records import trial as trials
from labo.records.comparison import RESULTS
from labo.reduction import as_rows

SPLITS = ("test", "validation", "train")


@dataclass(frozen=True)
class SavedRun:
    """A finished run: its folder, its description (run.json) and its record (record.json)."""

    folder: Path
    description: Mapping[str, Any]
    record: Mapping[str, Any]

    @property
    def trial(self) -> trials.Trial:
        """Its trial, by name and settings alone."""
        return trials.Trial(*(self.description[key] for key in ("task", "method", "seed", "settings")))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return tuple(self.description["classes"])

    @property
    def temperature(self) -> float:
        """The temperature fitted on the validation split."""
        return self.record["metrics"]["temperature"]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of its training, without its method's options."""
        return flat.split(self.description["settings"], self.description["method"])[0]

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The files that its task saved beside it.

        Raises:
            UserError: one is missing or damaged.
        """
        names = self.description.get("files", ())
        try:
            return {name: trials.check_file(self.folder, name, self.record).read_bytes() for name in names}
        except OSError as error:
            raise UserError(f"The run in '{self.folder}' lacks a file: {error.filename}.") from error

    @cached_property
    def evaluator(self) -> Any:
        """The evaluator of its network.

        Raises:
            UserError: a file that was saved with the run is missing or damaged.
        """
        return make_evaluator(self.task.kind, self.description["preprocessing"], self.files, self.settings)

    @cached_property
    def task(self) -> Any:
        """Its task."""
        return tasks.create(self.description["task"], **self.description["task_options"])

    @cached_property
    def model(self) -> Any:
        """The trained network.

        Raises:
            UserError: a file of the run is missing or damaged.
        """
        from labo.training import checkpoints

        _ = self.files  # which the network may be made from
        try:
            settings = self.task.saved_settings(self.settings, self.folder)
            if settings.get("pretrained"):
                settings = {**settings, "pretrained": False}  # the run's own weights replace them
            model = self.task.model(self.classes, self.description["preprocessing"], settings)
        except KeyError as error:
            raise UserError(f"The {trials.RUN} in '{self.folder}' is damaged: its settings lack {error}.") from error
        except (TypeError, AttributeError) as error:  # a setting of another type, where no task has checked it
            raise UserError(f"The {trials.RUN} in '{self.folder}' is damaged: {first_line(error)}.") from error
        weights = checkpoints.read_weights(trials.check_file(self.folder, trials.WEIGHTS, self.record))
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"The weights in '{self.folder}' are not of the network in its {trials.RUN}.") from error
        return model.eval()

    @cached_property
    def memory(self) -> Any:
        """The running mean of the network's predictions of each training example, (N, C); None without such a memory.

        Raises:
            UserError: the file is damaged, or is not of this run's examples and classes.
        """
        from labo.training import checkpoints

        path = self.folder / trials.MEMORY
        memory = self.regularizer.prediction_memory
        if memory is None or not path.exists():  # some keep the weights alone
            return None
        trials.check_file(self.folder, trials.MEMORY, self.record)
        try:
            memory.load_state_dict(checkpoints.read_weights(path))
            return memory.all_distributions(len(self.splits.train), len(self.classes))
        except RuntimeError as error:
            raise UserError(f"The memory in '{path}' is damaged: train the run anew.") from error

    @cached_property
    def splits(self) -> Any:
        """The splits that it was trained, validated and tested on.

        Raises:
            UserError: the data have changed since the training.
        """
        if self.task.fingerprint() != self.description["data"]:
            raise UserError(
                f"The data of the run in '{self.folder}' have changed since it was trained: train it anew, or name a "
                "--data."
            )
        return self.task.recorded_splits(self.description["seed"], self.classes, self.description["preprocessing"])

    @property
    def regularizer(self) -> Any:
        """Its method with its options, without the state that it learnt."""
        regularizer = flat.create_method(self.description["method"], self.description["settings"])
        if self.record.get("decision"):
            regularizer.provide(decision=Decision.from_json(self.record["decision"]))
        return regularizer

    @property
    def device(self) -> str:
        """The device of predictions: an accelerator where there is one."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    def examples(self, split: str) -> Any:
        """The examples of one split.

        Raises:
            UserError: unknown split, or data that have changed since the training.
        """
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        return getattr(self.splits, split)

    def examples_in(self, path: Path, target: str | None) -> Any:
        """Labelled examples in a file or folder; `target` is the column, or the array, of their classes."""
        return self.evaluator.examples(
            self.task.read_examples(path, self.description["preprocessing"], self.classes, target)
        )

    def inputs_in(self, path: Path) -> Any:
        """The features of new, unlabelled inputs in a file or folder."""
        return self.task.read_inputs(path, self.description["preprocessing"])

    def readable_inputs_in(self, path: Path) -> tuple[Any, list[str]]:
        """(the features of the images that can be read, the names of the others)."""
        return self.task.read_readable(path, self.description["preprocessing"])

    def logits(self, features: Any) -> Any:
        """The network's logits (N, C) of features (N, …), float32 on the CPU."""
        return predict(self.model.to(self.device), features)

    def evaluate(self, split: str) -> dict[str, float]:
        """The scores of one split, raw and at the temperature fitted on validation.

        Raises:
            UserError: as `examples`.
        """
        return self.scores(self.examples(split))

    def notes(self, examples: Any, what: str) -> tuple[str, ...]:
        """Sentences for the user about the scores of examples, which are called `what`."""
        return (*examples.notes, *self.evaluator.notes(self.model, examples, what))

    def input_notes(self, path: Path) -> tuple[str, ...]:
        """Sentences for the user about the inputs in a file or folder."""
        return self.task.input_notes(path, self.description["preprocessing"])

    def search_scores(self, examples: Any, beam: int) -> dict[str, float]:
        """BLEU and chrF of the translations of examples by beam search of another width."""
        return self.evaluator.search_scores(self.model.to(self.device), examples, beam)

    def require_kind(self, kind: str, command: str) -> None:
        """Check that a command applies to this kind of task.

        Raises:
            UserError: it does not.
        """
        if self.task.kind != kind:
            other = "translate" if self.task.kind == "translation" else "predict"
            raise UserError(
                f"labo {command} does not apply to the run in '{self.folder}' of task "
                f"'{self.description['task']}'; see labo {other}."
            )

    def scores(self, examples: Any) -> dict[str, float]:
        """The scores of examples, raw and at the temperature fitted on validation."""
        return self.evaluator.scores(self.model.to(self.device), examples, self.record["metrics"])


def load(folder: Path, **reading: Any) -> SavedRun:
    """The run in a folder: that of `labo train`, or DIR/TASK/METHOD/SEED of a comparison.

    `reading` are options of its task for files other than those it was trained on; None leaves the run's own.

    Raises:
        UserError: there is none, it is not finished, it failed, or its files are damaged.
    """
    description, record = trials.read_description(folder), trials.read_record(folder)
    if description is None:
        if (folder / RESULTS).exists():
            raise UserError(f"'{folder}' holds a comparison; name one of its runs: {folder}/TASK/METHOD/SEED.")
        raise UserError(f"No run in '{folder}'.")
    if record is None:
        raise UserError(f"The run in '{folder}' is not finished; the command that began it goes on with it.")
    if record.get("failed"):
        raise UserError(
            f"The run in '{folder}' failed at step {record['failed']['step']}: {record['failed']['reason']}."
        )
    if (record.get("metrics") or {}).get("temperature") is None:
        raise UserError(f"'{folder / trials.RECORD}' is damaged: its entry `metrics.temperature` is missing.")
    trials.check_file(folder, trials.RUN, record)
    changed = {name: value for name, value in reading.items() if value is not None}
    if changed:
        description = {**description, "task_options": {**description["task_options"], **changed}}
    return SavedRun(folder, description, record)


def soft_labels(run: SavedRun, logits: Tensor) -> tuple[Tensor | None, str]:
    """(q*, (N, C) float64, of inputs whose class is not known; a sentence on it).

    q* is what `Regularizer.labels` gives for the run's own logits, without temperature. Where it depends on the true
    class, the predicted class stands for it. It is None, and the sentence says why, for a method without labels, or
    whose labels need what exists in training alone: its examples, a teacher, a memory.

    Args:
        run: finished.
        logits: (N, C), of its network.
    """
    method = run.description["method"]
    regularizer = run.regularizer.eval()
    needs = [need for need in regularizer.needs if need != "class_counts"]
    if "class_counts" in regularizer.missing:
        if "class_counts" not in run.description:
            return None, f"No q*: method '{method}' computes it from the class counts, which this run does not record."
        regularizer.provide(class_counts=torch.tensor(run.description["class_counts"]))
    # A prior is an option, or computed from the counts; all other state was learnt in training.
    if needs or set(regularizer.state_dict()) - {"prior"}:
        what = ", ".join(needs) or "the state learnt in training"
        return None, f"No q*: method '{method}' needs {what}, which exists in training alone."
    predicted = logits.argmax(-1)
    labels = _labels(regularizer, logits, predicted)
    if labels is None:
        return None, f"No q*: method '{method}' has no soft label."
    sentence = f"q* is the label that {method} would train towards, from the network's own logits"
    second = logits.topk(min(2, logits.shape[-1])).indices[:, -1]
    if not torch.equal(labels, _labels(regularizer, logits, second)):  # pyright: ignore[reportArgumentType]
        sentence += "; it depends on the true class, for which the predicted one stands"
    return labels, sentence + "."


def _labels(regularizer: Any, logits: Tensor, target: Tensor) -> Tensor | None:
    with torch.no_grad():
        try:
            labels = regularizer.labels(replace(as_rows(logits, target, None, -100), given={}))
        except (TypeError, ValueError) as error:
            raise UserError(f"Method '{regularizer.name}' gives no label for these inputs: {error}") from error
    return None if labels is None else labels.double()
