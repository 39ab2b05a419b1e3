"""A finished run, read back: its network, its task, and what it says of inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from labo import tasks
from labo.errors import UserError, unknown
from labo.experiment import settings as flat
from labo.experiment import trial
from labo.storage import read_object

SPLITS = ("test", "validation", "train")


@dataclass(frozen=True)
class Run:
    """One finished run. `about` is its run.json, `record` its record.json."""

    folder: Path
    about: Mapping[str, Any]
    record: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return tuple(self.about["classes"])

    @property
    def temperature(self) -> float:
        """The temperature fitted on validation."""
        return self.record["metrics"]["temperature"]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of its training, without the options of its method."""
        return flat.split(self.about["settings"], self.about["method"])[0]

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The files that its task saved with it.

        Raises:
            UserError: one is not there.
        """
        try:
            return {name: (self.folder / name).read_bytes() for name in self.about.get("files", ())}
        except OSError as error:
            raise UserError(f"The run in '{self.folder}' lacks a file: {error.filename}.") from error

    @cached_property
    def judge(self) -> Any:
        """What measures its network.

        Raises:
            UserError: a file that was saved with the run is missing or damaged.
        """
        from labo.experiment.judges import judge_of

        return judge_of(self.task.kind, self.about["preprocessing"], self.files, self.settings)

    @cached_property
    def task(self) -> Any:
        """The task, made again."""
        return tasks.create(self.about["task"], **self.about["task_options"])

    @cached_property
    def model(self) -> Any:
        """The trained network."""
        from labo.training import checkpoints

        try:
            settings = self.task.saved_settings(self.settings, self.folder)
            if settings.get("pretrained"):
                settings = {**settings, "pretrained": False}  # the run's own weights come over them
            model = self.task.model(self.classes, self.about["preprocessing"], settings)
        except KeyError as error:
            raise UserError(f"The {trial.RUN} in '{self.folder}' is damaged: its settings lack {error}.") from error
        weights = checkpoints.read_weights(self.folder / trial.WEIGHTS)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"The weights in '{self.folder}' are not of the network in its {trial.RUN}.") from error
        return model.eval()

    @cached_property
    def memory(self) -> Any:
        """What the network has said of each training example, (N, C) float32; None where its method keeps no memory.

        Raises:
            UserError: the file is damaged, or is not of this run's examples and classes.
        """
        from labo.training import checkpoints

        path = self.folder / trial.MEMORY
        held = self.regularizer.prediction_memory
        if held is None or not path.exists():
            return None
        try:
            held.load_state_dict(checkpoints.read_weights(path))
            return held.all_distributions(len(self.splits.train), len(self.classes))
        except RuntimeError as error:
            raise UserError(f"The memory in '{path}' is damaged: train the run anew.") from error

    @cached_property
    def splits(self) -> Any:
        """The splits that it was trained, validated and tested on.

        Raises:
            UserError: the data have changed since the training.
        """
        if self.task.fingerprint() != self.about["data"]:
            raise UserError(
                f"The data of the run in '{self.folder}' have changed since it was trained: train it anew, or name a "
                "--data."
            )
        return self.task.splits(self.about["seed"])

    @property
    def regularizer(self) -> Any:
        """The method that it was trained by, with its options and without what it learnt."""
        from labo.outer.trust import Decision

        regularizer = trial.build_method(self.about["method"], self.about["settings"])
        if self.record.get("decision"):
            regularizer.provide(decision=Decision.from_json(self.record["decision"]))
        return regularizer

    @property
    def device(self) -> str:
        """Where predictions are made: an accelerator where there is one."""
        import torch

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
        return self.judge.examples(self.task.read_examples(path, self.about["preprocessing"], self.classes, target))

    def inputs_in(self, path: Path) -> Any:
        """The features of new inputs in a file or folder."""
        return self.task.read_inputs(path, self.about["preprocessing"])

    def logits(self, features: Any) -> Any:
        """What the network says of features (N, …): logits (N, C), float32 on the CPU."""
        from labo.experiment import prediction

        return prediction.predict(self.model.to(self.device), features)

    def evaluate(self, split: str) -> dict[str, float]:
        """The scores of one split, raw and at the temperature fitted on validation.

        Raises:
            UserError: as `examples`.
        """
        return self.scores(self.examples(split))

    def notes(self, examples: Any, what: str) -> tuple[str, ...]:
        """Sentences that the user should see beside the scores of examples, which are called `what`."""
        return self.judge.notes(self.model, examples, what)

    def search_scores(self, examples: Any, beam: int) -> dict[str, float]:
        """BLEU and chrF of the translations of examples by a beam of another width."""
        return self.judge.search_scores(self.model.to(self.device), examples, beam)

    def require_kind(self, kind: str, command: str) -> None:
        """Refuse a command that is for another kind of task.

        Raises:
            UserError: it is.
        """
        if self.task.kind != kind:
            other = "translate" if self.task.kind == "translation" else "predict"
            raise UserError(
                f"The run in '{self.folder}' is of task '{self.about['task']}', which labo {command} is not for; see "
                f"labo {other}."
            )

    def scores(self, examples: Any) -> dict[str, float]:
        """The scores of examples, raw and at the temperature fitted on validation."""
        return self.judge.scores(self.model.to(self.device), examples, self.temperature)


def load(folder: Path) -> Run:
    """The run in a folder: that of `labo train`, or DIR/TASK/METHOD/SEED of a comparison.

    Raises:
        UserError: there is none, it is not finished, it failed, or its files are damaged.
    """
    about, record = read_object(folder / trial.RUN), trial.finished(folder)
    if about is None:
        if (folder / "results.jsonl").exists():
            raise UserError(f"'{folder}' holds a comparison; name one of its runs: {folder}/TASK/METHOD/SEED.")
        damaged = (folder / trial.RUN).exists()
        raise UserError(f"The {trial.RUN} in '{folder}' is damaged." if damaged else f"No run in '{folder}'.")
    if record is None:
        raise UserError(f"The run in '{folder}' is not finished; the command that began it goes on with it.")
    if record.get("failed"):
        raise UserError(
            f"The run in '{folder}' failed at step {record['failed']['step']}: {record['failed']['reason']}."
        )
    missing = [key for key in (*trial.IDENTITY, "classes", "preprocessing") if key not in about]
    if missing or "temperature" not in record.get("metrics", {}):
        raise UserError(f"The {trial.RUN} or {trial.RECORD} in '{folder}' is damaged: it lacks what a run has.")
    return Run(folder, about, record)
