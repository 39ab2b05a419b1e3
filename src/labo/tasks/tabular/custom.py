"""The task `table`: the user's own table with a column of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from labo.errors import UserError, unknown
from labo.settings import TrainingSettings
from labo.splitting import stratified, stratified_sample
from labo.tasks.base import Examples, Origin, Sample, Splits
from labo.tasks.data_files import digest
from labo.tasks.file_limits import absolute
from labo.tasks.tabular import features
from labo.tasks.tabular.cells import Series
from labo.tasks.tabular.classes import RULES, class_codes, class_texts, count_note, read_classes, unlabelled_note
from labo.tasks.tabular.csv_files import parse_separator
from labo.tasks.tabular.table_files import Frame
from labo.tasks.tabular.task import TabularTask

SPLIT_FRACTIONS = (0.6, 0.2, 0.2)
SPLIT_NAMES = {"train": 0, "training": 0, "validation": 1, "val": 1, "valid": 1, "dev": 1, "test": 2}
# Columns compared first in the search for duplicate rows: few, for speed, but enough to separate most rows.
DUPLICATE_KEY_COLUMNS = 16


class CustomTable(TabularTask):
    """A table in a file.

    Args:
        data: path of a .csv, .parquet or .npz file.
        target: the column of the classes.
        split: a column with values train, validation or test; without it 60/20/20, stratified, drawn by the seed.
        train_size: number of training examples to keep (stratified); all by default.
        label_noise: "SHARE,symmetric|pair": this share of the training and validation labels is changed.
        separator: the character between the cells of .csv files; found in them by default.
        decimal: "." or ",", the mark of decimals in strings; found in them by default.
        leave_out: columns that are no features.
        dates: "expand" makes features of the year, month and day of dates, which are refused otherwise.
    """

    name = "table"

    def __init__(
        self,
        *,
        data: str = "",
        target: str = "",
        split: str | None = None,
        train_size: int | None = None,
        label_noise: str | None = None,
        separator: str | None = None,
        decimal: str | None = None,
        leave_out: Sequence[str] = (),
        dates: str | None = None,
    ) -> None:
        if not data or not target:
            missing = "--data FILE.csv|.parquet|.npz --target COLUMN" if not data else "--target COLUMN, the classes"
            raise UserError(f"Task 'table' needs {missing}.")
        if decimal not in (None, ".", ","):
            raise UserError(f"Expected --decimal to be . or , but got '{decimal}'.")
        if dates not in (None, "expand"):
            raise UserError(f"Expected option `dates` to be expand, but got '{dates}'.")
        self.path = str(absolute(data))
        self.leave_out = [leave_out] if isinstance(leave_out, str) else list(leave_out)
        super().__init__(
            data=self.path, target=target, split=split, train_size=train_size, label_noise=label_noise, decimal=decimal,
            separator=None if separator is None else parse_separator(separator), leave_out=self.leave_out or None,
            dates=dates,
        )  # fmt: skip
        self.target, self.split, self.train_size = target, split, train_size

    @override
    def splits(self, seed: int) -> Splits:
        return self._splits(seed, None, None)

    @override
    def recorded_splits(self, seed: int, classes: Sequence[str], preprocessing: Mapping[str, Any]) -> Splits:
        if preprocessing.get("rules", 1) == RULES:
            return self.splits(seed)
        return self._splits(seed, tuple(classes), preprocessing["columns"])

    def _splits(self, seed: int, classes: tuple[str, ...] | None, columns: list[features.Column] | None) -> Splits:
        """The splits of a seed; with the `classes` and `columns` of a run that was trained by older rules."""
        frame, target, classes, notes = self._read(classes)
        generator = torch.Generator().manual_seed(seed)
        parts = self._split(frame, target, classes, generator, notes)
        if self.train_size is not None:
            parts[0] = _sample(parts[0], target, self.train_size, generator)
        inputs = frame.drop(columns=[name for name in (self.target, self.split, *self.leave_out) if name])
        decimal = self.options.get("decimal")
        if columns is None:
            counters = features.row_counters(inputs)
            notes += [f"Column '{name}' has no name and numbers the rows: it is left out." for name in counters]
            inputs = inputs.drop(columns=counters)
            columns, column_notes = features.fit(
                inputs, _mask(parts[0], len(frame)), decimal=decimal, expand_dates="dates" in self.options
            )
            notes += column_notes
        origin = Origin(torch.tensor(frame.index.to_numpy()), _row_name)
        encoded = features.encode(inputs, columns, decimal)
        train, validation, test = self.make_parts(encoded, origin, target, parts, len(classes), generator)
        categories = [column for column in columns if column["kind"] == "category"]
        validation, test = (
            replace(part, notes=features.unseen_values(inputs.iloc[rows.numpy()], categories) if categories else ())
            for part, rows in zip((validation, test), parts[1:], strict=True)
        )
        return Splits(train, validation, test, classes, {"columns": columns, "rules": RULES}, tuple(notes))

    @override
    def samples(self, examples: Examples, preprocessing: Mapping[str, Any]) -> list[Sample]:
        """The columns used as inputs, with the values of the file."""
        assert examples.origin is not None
        names = list(dict.fromkeys(column["name"] for column in preprocessing["columns"]))
        rows = self.read_frame(self.path).loc[examples.origin.source_indices.numpy(), names]
        strings = rows.astype(object).where(rows.notna(), "").map(str)
        return [dict(zip(names, values, strict=True)) for values in strings.itertuples(index=False, name=None)]

    @override
    def training_settings(self, model: Any = None) -> TrainingSettings:
        """60 epochs for a small table, fewer for a large one."""
        rows = len(self.read_frame(self.path))
        epochs = max(10, round(60 * min(1.0, 5_000 / rows)))
        return replace(super().training_settings(model), epochs=epochs, batch_size=64 if rows <= 20_000 else 256)

    @override
    def fingerprint(self) -> str:
        self.read_frame(self.path)
        return digest(self.path)

    def _read(self, classes: tuple[str, ...] | None) -> tuple[Frame, Tensor, tuple[str, ...], list[str]]:
        frame = self.read_frame(self.path)
        for column in (self.target, self.split, *self.leave_out):
            if column is not None and column not in frame.columns:
                raise self._unknown(column, list(frame.columns))
        if self.target in self.leave_out:
            raise UserError(f"The column '{self.target}' holds the classes, so --leave-out does not apply.")
        notes = []
        texts = class_texts(frame[self.target])
        if classes is None:
            labelled = np.array([text is not None for text in texts])
            classes = read_classes(texts[labelled], frame[self.target][labelled], self.path)
            codes = class_codes(texts, classes)
        else:
            codes = class_codes(texts, classes, rules=1)
        if unlabelled := int((codes < 0).sum()):
            notes.append(unlabelled_note(self.target, unlabelled))
            frame, codes = frame[codes >= 0], codes[codes >= 0]  # the index keeps the row number in the file
        notes.insert(0, count_note(self.target, classes, np.bincount(codes, minlength=len(classes)).tolist()))
        duplicates = _count_duplicates(frame)
        if duplicates:
            are = "row is a copy" if duplicates == 1 else "rows are copies"
            notes.append(f"{duplicates} {are} of another row; copies may be split between training and test.")
        return frame, torch.from_numpy(codes), classes, notes

    def _unknown(self, column: str, columns: list[str]) -> UserError:
        if len(columns) == 1 and self.path.lower().endswith(".csv"):
            return UserError(
                f"Unknown column '{column}': '{self.path}' was read as the one column '{columns[0]}'; tell what "
                "separates its cells with --separator."
            )
        return unknown("column", column, columns)

    def _split(
        self,
        frame: Frame,
        target: Tensor,
        classes: tuple[str, ...],
        generator: torch.Generator,
        notes: list[str],
    ) -> list[Tensor]:
        if self.split is None:
            return stratified(target, SPLIT_FRACTIONS, generator)
        codes = _split_codes(frame[self.split])
        parts = [torch.nonzero(codes == code).flatten() for code in range(3)]
        for part, name in ((parts[0], "train"), (parts[2], "test")):
            if not len(part):
                raise UserError(f"The split column '{self.split}' has no '{name}' row.")
        if not len(parts[1]):
            train, validation = stratified(target[parts[0]], (0.8, 0.2), generator)
            parts[0], parts[1] = parts[0][train], parts[0][validation]
            notes.append(f"'{self.split}' names no validation rows: the seed draws a fifth of the training rows.")
        else:
            notes.append("The split is your own: seeds differ in the initialisation and the order alone.")
        unseen = set(target.tolist()) - set(target[parts[0]].tolist())
        if unseen:
            raise UserError(f"The class '{classes[min(unseen)]}' has no training row in the split '{self.split}'.")
        return parts


def _count_duplicates(frame: Frame) -> int:
    """The number of rows that equal an earlier row.

    A table may have thousands of columns: all are compared only for rows that agree in the first few.
    """
    candidates = frame.duplicated(subset=list(frame.columns[:DUPLICATE_KEY_COLUMNS]), keep=False)
    return int(frame[candidates].duplicated().sum())


def _split_codes(series: Series) -> Tensor:
    names = series.map(lambda value: str(value).strip().lower())
    wrong = ~names.isin(list(SPLIT_NAMES))
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise UserError(
            f"Expected train, validation or test in row {series.index[row] + 1} of column '{series.name}', but got "
            f"'{series.iloc[row]}'."
        )
    return torch.tensor([SPLIT_NAMES[name] for name in names])


def _row_name(index: int) -> str:
    return f"row {index + 1}"


def _sample(part: Tensor, target: Tensor, size: int, generator: torch.Generator) -> Tensor:
    try:
        return part[stratified_sample(target[part], size, generator)]
    except ValueError as error:
        classes = len(torch.unique(target[part]))
        raise UserError(
            f"Expected a train size from {classes} (the number of classes) to {len(part)} (all training rows), but got "
            f"{size}."
        ) from error


def _mask(part: Tensor, size: int) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[part.numpy()] = True
    return mask
