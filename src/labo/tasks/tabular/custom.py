"""The task `table`: the user's own table with a column of classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
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
from labo.tasks.labels import class_name
from labo.tasks.tabular import features
from labo.tasks.tabular.table_files import Frame, Series, read_frame, to_numbers
from labo.tasks.tabular.task import TabularTask

SPLIT_FRACTIONS = (0.6, 0.2, 0.2)
SPLIT_NAMES = {"train": 0, "training": 0, "validation": 1, "val": 1, "valid": 1, "dev": 1, "test": 2}
# A target column with more distinct numbers than this is a quantity, not classes.
MAX_NUMERIC_CLASSES = 100
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
    ) -> None:
        if not data or not target:
            missing = "--data FILE.csv|.parquet|.npz --target COLUMN" if not data else "--target COLUMN, the classes"
            raise UserError(f"Task 'table' needs {missing}.")
        self.path = str(Path(data).resolve())
        super().__init__(data=self.path, target=target, split=split, train_size=train_size, label_noise=label_noise)
        self.target, self.split, self.train_size = target, split, train_size

    @override
    def splits(self, seed: int) -> Splits:
        frame, target, classes, notes = self._read()
        generator = torch.Generator().manual_seed(seed)
        parts = self._split(frame, target, classes, generator, notes)
        if self.train_size is not None:
            parts[0] = _sample(parts[0], target, self.train_size, generator)
        inputs = frame.drop(columns=[name for name in (self.target, self.split) if name])
        columns, column_notes = features.fit(inputs, _mask(parts[0], len(frame)))
        origin = Origin(torch.tensor(frame.index.to_numpy()), _row_name)
        examples = self.make_parts(features.encode(inputs, columns), origin, target, parts, len(classes), generator)
        return Splits(*examples, classes, {"columns": columns}, (*notes, *column_notes))

    @override
    def samples(self, examples: Examples, preprocessing: Mapping[str, Any]) -> list[Sample]:
        """The columns used as inputs, with the values of the file."""
        assert examples.origin is not None
        names = [column["name"] for column in preprocessing["columns"]]
        rows = read_frame(self.path).loc[examples.origin.source_indices.numpy(), names]
        strings = rows.astype(object).where(rows.notna(), "").map(str)
        return [dict(zip(names, values, strict=True)) for values in strings.itertuples(index=False, name=None)]

    @override
    def training_settings(self, model: Any = None) -> TrainingSettings:
        """60 epochs for a small table, fewer for a large one."""
        rows = len(read_frame(self.path))
        epochs = max(10, round(60 * min(1.0, 5_000 / rows)))
        return replace(super().training_settings(model), epochs=epochs, batch_size=64 if rows <= 20_000 else 256)

    @override
    def fingerprint(self) -> str:
        read_frame(self.path)
        return digest(self.path)

    def _read(self) -> tuple[Frame, Tensor, tuple[str, ...], list[str]]:
        frame = read_frame(self.path)
        for column in (self.target, self.split):
            if column is not None and column not in frame.columns:
                raise unknown("column", column, frame.columns)
        notes = []
        unlabelled = frame[self.target].isna()
        if unlabelled.any():
            notes.append(f"{int(unlabelled.sum())} rows have no '{self.target}' and are left out.")
            frame = frame[~unlabelled]  # the index keeps the row number in the file
        duplicates = _count_duplicates(frame)
        if duplicates:
            notes.append(f"{duplicates} rows are copies of another row; copies may be split between training and test.")
        target, classes = _classes(frame[self.target], self.path)
        return frame, target, classes, notes

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


def _classes(series: Series, path: str) -> tuple[Tensor, tuple[str, ...]]:
    """Class indices (N,) and class names, in numerical or alphabetical order."""
    numbers = to_numbers(series)
    values = numbers if numbers.notna().all() else series.map(str)
    distinct, counts = np.unique(values.to_numpy(), return_counts=True)
    if len(distinct) < 2:
        raise UserError(f"The column '{series.name}' in '{path}' holds one class only, '{distinct[0]}'.")
    if numbers.notna().all() and len(distinct) > MAX_NUMERIC_CLASSES:
        raise UserError(
            f"The column '{series.name}' holds {len(distinct)} different numbers: a quantity, not classes; labo trains "
            "classifiers."
        )
    if counts.min() == 1:
        single = distinct[counts.argmin()]
        row = series.index[int((values == single).to_numpy().argmax())]
        raise UserError(
            f"The class '{class_name(single)}' has a single example (row {row + 1}), which cannot be in both training "
            "and test: merge the class with another or leave it out."
        )
    return torch.from_numpy(np.searchsorted(distinct, values.to_numpy())).long(), tuple(map(class_name, distinct))


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
