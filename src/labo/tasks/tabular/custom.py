"""The user's own table: any columns, a column of classes, a split of ours or of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labo.errors import UserError, unknown
from labo.splitting import some, stratified
from labo.tasks.base import Examples, Origin, Sample, Splits
from labo.tasks.tabular import features as columns
from labo.tasks.tabular.table_files import Frame, Series, digest, read_frame, to_numbers
from labo.tasks.tabular.task import ColumnTask

SHARES = (0.6, 0.2, 0.2)
SPLIT_NAMES = {"train": 0, "training": 0, "validation": 1, "val": 1, "valid": 1, "dev": 1, "test": 2}
# More different numbers than this in the target column are a quantity, not classes.
MOST_NUMERIC_CLASSES = 100
# Few enough to compare fast, and enough to tell most rows apart.
COMPARED_FIRST = 16


class Table(ColumnTask):
    """A table in a file.

    Args:
        data: path of a .csv, .parquet or .npz file.
        target: the column of the classes.
        split: a column that says train, validation or test; without it 60/20/20, stratified, drawn by the seed.
        train_size: how many of the training examples to keep (stratified); all by default.
        label_noise: "SHARE,symmetric|pair" of the training and validation labels are turned into wrong ones.
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
            lacks = "--data FILE.csv|.parquet|.npz --target COLUMN" if not data else "--target COLUMN, the classes"
            raise UserError(f"Task 'table' needs {lacks}.")
        self.path = str(Path(data).resolve())
        super().__init__(data=self.path, target=target, split=split, train_size=train_size, label_noise=label_noise)
        self.target, self.split, self.train_size = target, split, train_size

    def splits(self, seed: int) -> Splits:
        """See `Task.splits`."""
        frame, target, classes, notes = self._read()
        generator = torch.Generator().manual_seed(seed)
        parts = self._parts(frame, target, classes, generator, notes)
        if self.train_size is not None:
            parts[0] = _some(parts[0], target, self.train_size, generator)
        inputs = frame.drop(columns=[name for name in (self.target, self.split) if name])
        known, told = columns.fit(inputs, _mask(parts[0], len(frame)))
        features = columns.encode(inputs, known)
        rows = Origin(torch.tensor(frame.index.to_numpy()), _called)
        examples = self.parts(features, rows, target, parts, len(classes), generator)
        return Splits(*examples, classes, {"columns": known}, (*notes, *told))

    def samples(self, examples: Examples, preprocessing: Mapping[str, Any]) -> list[Sample]:
        """See `Task.samples`: the columns learnt from, as the file has them."""
        assert examples.origin is not None
        names = [column["name"] for column in preprocessing["columns"]]
        rows = read_frame(self.path).loc[examples.origin.places.numpy(), names]
        shown = rows.astype(object).where(rows.notna(), "").map(str)
        return [dict(zip(names, values, strict=True)) for values in shown.itertuples(index=False, name=None)]

    def default_settings(self, model: Any = None) -> dict[str, Any]:
        """See `Task.default_settings`: 60 epochs of a small table, fewer of a large one."""
        rows = len(read_frame(self.path))
        epochs = max(10, round(60 * min(1.0, 5_000 / rows)))
        return super().default_settings(model) | {"epochs": epochs, "batch_size": 64 if rows <= 20_000 else 256}

    def fingerprint(self) -> str:
        """See `Task.fingerprint`."""
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
            frame = frame[~unlabelled]  # whose index still tells the row in the file
        copies = _copies(frame)
        if copies:
            notes.append(f"{copies} rows are copies of another row; a copy may test what its twin trained.")
        target, classes = _classes(frame[self.target], self.path)
        return frame, target, classes, notes

    def _parts(
        self,
        frame: Frame,
        target: Tensor,
        classes: tuple[str, ...],
        generator: torch.Generator,
        notes: list[str],
    ) -> list[Tensor]:
        if self.split is None:
            return stratified(target, SHARES, generator)
        codes = _split_codes(frame[self.split])
        parts = [torch.nonzero(codes == code).flatten() for code in range(3)]
        for part, name in ((parts[0], "train"), (parts[2], "test")):
            if not len(part):
                raise UserError(f"The split column '{self.split}' has no '{name}' row.")
        if not len(parts[1]):
            kept, drawn = stratified(target[parts[0]], (0.8, 0.2), generator)
            parts[0], parts[1] = parts[0][kept], parts[0][drawn]
            notes.append(f"'{self.split}' names no validation rows: the seed draws a fifth of the training rows.")
        else:
            notes.append("The split is your own: seeds differ in the initialisation and the order alone.")
        unseen = set(target.tolist()) - set(target[parts[0]].tolist())
        if unseen:
            raise UserError(f"The class '{classes[min(unseen)]}' has no training row in the split '{self.split}'.")
        return parts


def _copies(frame: Frame) -> int:
    """How many rows are copies of a row above them.

    Only rows that are alike in the first columns are compared in all, of which there may be thousands.
    """
    alike = frame.duplicated(subset=list(frame.columns[:COMPARED_FIRST]), keep=False)
    return int(frame[alike].duplicated().sum())


def _classes(series: Series, path: str) -> tuple[Tensor, tuple[str, ...]]:
    """Class indices (N,) and names; numbers in the order of numbers, texts in that of the alphabet."""
    numbers = to_numbers(series)
    values = numbers if numbers.notna().all() else series.map(str)
    found, counts = np.unique(values.to_numpy(), return_counts=True)
    if len(found) < 2:
        raise UserError(f"The column '{series.name}' in '{path}' holds one class only, '{found[0]}'.")
    if numbers.notna().all() and len(found) > MOST_NUMERIC_CLASSES:
        raise UserError(
            f"The column '{series.name}' holds {len(found)} different numbers: a quantity, not classes; labo trains "
            "classifiers."
        )
    if counts.min() == 1:
        lonely = found[counts.argmin()]
        row = series.index[int((values == lonely).to_numpy().argmax())]
        raise UserError(
            f"The class '{columns.class_name(lonely)}' has a single example (row {row + 1}), which cannot both train "
            "and test: merge the class with another or leave it out."
        )
    return torch.from_numpy(np.searchsorted(found, values.to_numpy())).long(), tuple(map(columns.class_name, found))


def _split_codes(series: Series) -> Tensor:
    names = series.map(lambda value: str(value).strip().lower())
    wrong = ~names.isin(list(SPLIT_NAMES))
    if wrong.any():
        place = int(wrong.to_numpy().argmax())
        raise UserError(
            f"Expected train, validation or test in row {series.index[place] + 1} of column '{series.name}', but got "
            f"'{series.iloc[place]}'."
        )
    return torch.tensor([SPLIT_NAMES[name] for name in names])


def _called(place: int) -> str:
    return f"row {place + 1}"


def _some(part: Tensor, target: Tensor, size: int, generator: torch.Generator) -> Tensor:
    try:
        return part[some(target[part], size, generator)]
    except ValueError as error:
        classes = len(torch.unique(target[part]))
        raise UserError(
            f"Expected a train size from {classes} (the classes) to {len(part)} (all there is to train on), but got "
            f"{size}."
        ) from error


def _mask(part: Tensor, size: int) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[part.numpy()] = True
    return mask
