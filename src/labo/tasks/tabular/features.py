"""Columns of a table to features: numbers standardised, categories one-hot, missing values marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labo.errors import UserError
from labo.tasks.tabular.table_files import Frame, Series, to_numbers

# A column with strings is numeric if at least this fraction of its values are numbers; the strings are then errors.
NUMERIC_FRACTION = 0.9
MAX_CATEGORIES = 100

Column = dict[str, Any]


def fit(frame: Frame, train: np.ndarray) -> tuple[list[Column], list[str]]:
    """Fit the encoding of each column on the rows of the mask `train` (N,).

    Returns:
        The columns as JSON-able dicts, and sentences to show to the user.

    Raises:
        UserError: a string among numbers (the message gives its row and column), a date, infinite numbers, or no
            column left to learn from.
    """
    columns: list[Column] = []
    notes: list[str] = []
    for name in frame.columns:
        series = frame[name]
        numbers = as_numbers(series)
        column, note = _fit_category(series, train) if numbers is None else _fit_number(series.name, numbers, train)
        if column:
            columns.append(column)
        if note:
            notes.append(note)
    if not columns:
        raise UserError("No column is left to learn from: every one is constant, empty or different in every row.")
    return columns, notes


def width(columns: Sequence[Mapping[str, Any]]) -> int:
    """The number of features of the columns."""
    return sum(len(c["categories"]) if c["kind"] == "category" else 1 + c["missing"] for c in columns)


def encode(frame: Frame, columns: Sequence[Mapping[str, Any]]) -> Tensor:
    """The features (N, width) of a table, float32; a category unseen in training is all zeros.

    Raises:
        UserError: a column is missing, or has a string where a number is needed.
    """
    absent = [column["name"] for column in columns if column["name"] not in frame.columns]
    if absent:
        raise UserError(f"The table lacks the column '{absent[0]}' ({len(absent)} of {len(columns)} are missing).")
    # Filled feature by feature, so that each write is contiguous; transposed at the end.
    features = torch.empty(width(columns), len(frame))
    rows = iter(features.numpy())
    for column in columns:
        series = frame[column["name"]]
        if column["kind"] == "category":
            strings = _strings(series).to_numpy(dtype=object)
            for category in column["categories"]:
                next(rows)[:] = strings == category
            continue
        numbers = as_numbers(series, required=True)
        assert numbers is not None
        missing = np.isnan(numbers)
        next(rows)[:] = np.where(missing, 0.0, (numbers - column["mean"]) / column["scale"])
        if column["missing"]:
            next(rows)[:] = missing
    return features.T.contiguous()


def as_numbers(series: Series, required: bool = False) -> np.ndarray | None:
    """A column as float64, NaN where a value is missing; None for a column of strings.

    Raises:
        UserError: it is mostly numbers, or numbers are `required`, and another value occurs.
    """
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(series):
        raise UserError(f"The column '{series.name}' holds dates; turn them into numbers or leave the column out.")
    if pd.api.types.is_bool_dtype(series) and not required:
        return None  # categories True and False
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "iuf":
        numbers = series.to_numpy(np.float64)
        _check_finite(series, np.isinf(numbers))
        return numbers
    numbers = to_numbers(series).to_numpy(dtype=np.float64, na_value=np.nan)
    present = series.notna().to_numpy()
    strings = present & np.isnan(numbers)
    if strings.any() and not required and strings.sum() > (1 - NUMERIC_FRACTION) * present.sum():
        return None
    if not present.any() and not required:
        return numbers
    _check_finite(series, strings | np.isinf(numbers))
    return numbers


def _check_finite(series: Series, wrong: np.ndarray) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"Expected a finite number in row {series.index[row] + 1} of column '{series.name}', but got "
            f"{str(series.iloc[row])!r}."
        )


def _fit_number(name: Any, numbers: np.ndarray, train: np.ndarray) -> tuple[Column | None, str]:
    values = numbers[train]
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return None, f"Column '{name}' has no value in the training split and is left out."
    scale = float(values.std())
    missing = bool(np.isnan(numbers).any())
    if scale <= 1e-12 * max(1.0, float(np.abs(values).max())):
        if not missing:
            return None, f"Column '{name}' is constant in the training split and is left out."
        scale = 1.0
    column = {"name": str(name), "kind": "number", "mean": float(values.mean()), "scale": scale, "missing": missing}
    count = int(np.isnan(numbers).sum())
    note = f"Column '{name}' lacks {count} values: set to the training mean, with a feature that says so."
    return column, note if missing else ""


def _fit_category(series: Series, train: np.ndarray) -> tuple[Column | None, str]:
    strings = _strings(series)
    counts = strings[train].value_counts()
    if len(counts) < 2:
        return None, f"Column '{series.name}' is constant in the training split and is left out."
    if len(counts) > max(2, train.sum() / 2):
        numbers = int(to_numbers(series).notna().sum())
        mixed = f" ({numbers} of its cells are numbers: empty the others to keep it)" if numbers else ""
        return None, f"Column '{series.name}' differs in nearly every row and is left out{mixed}."
    categories = sorted(counts.index[:MAX_CATEGORIES])
    column = {"name": str(series.name), "kind": "category", "categories": categories}
    notes = []
    if series.isna().any():
        notes.append(
            f"Column '{series.name}' lacks {int(series.isna().sum())} values: missing is a category of its own."
        )
    if len(counts) > MAX_CATEGORIES:
        notes.append(f"Column '{series.name}' keeps its {MAX_CATEGORIES} most frequent of {len(counts)} categories.")
    return column, " ".join(notes)


def _strings(series: Series) -> Series:
    return series.astype(object).where(series.notna(), "(missing)").map(str)
