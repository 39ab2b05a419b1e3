"""Columns of a table to features: numbers standardised, categories one-hot, missing values marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from labo.errors import UserError
from labo.tasks.tabular.table_files import Frame, Series, to_numbers

# A column of texts counts as numbers when at least this share of them are; the others are then mistakes to be told.
NUMERIC_SHARE = 0.9
MOST_CATEGORIES = 100

Column = dict[str, Any]


def fit(frame: Frame, train: np.ndarray) -> tuple[list[Column], list[str]]:
    """How each column becomes features, learnt from the rows `train`, and sentences to tell the user.

    Raises:
        UserError: a text among numbers (its row and column told), a date, infinite numbers, or nothing to learn from.
    """
    columns: list[Column] = []
    notes: list[str] = []
    for name in frame.columns:
        series = frame[name]
        numbers = as_numbers(series)
        column, note = _category(series, train) if numbers is None else _number(series.name, numbers, train)
        if column:
            columns.append(column)
        if note:
            notes.append(note)
    if not columns:
        raise UserError("No column is left to learn from: every one is constant, empty or different in every row.")
    return columns, notes


def width(columns: Sequence[Mapping[str, Any]]) -> int:
    """How many features the columns become."""
    return sum(len(c["categories"]) if c["kind"] == "category" else 1 + c["missing"] for c in columns)


def encode(frame: Frame, columns: Sequence[Mapping[str, Any]]) -> Tensor:
    """The features (N, width) of a table, float32; a category that training did not see is all zeros.

    Raises:
        UserError: a column is missing, or holds a text where a number is needed.
    """
    absent = [column["name"] for column in columns if column["name"] not in frame.columns]
    if absent:
        raise UserError(f"The table lacks the column '{absent[0]}' ({len(absent)} of {len(columns)} are missing).")
    # A feature a row while it is filled: a column at a time, thousands of them would be written across memory.
    features = torch.empty(width(columns), len(frame))
    rows = iter(features.numpy())
    for column in columns:
        series = frame[column["name"]]
        if column["kind"] == "category":
            texts = _texts(series).to_numpy(dtype=object)
            for category in column["categories"]:
                next(rows)[:] = texts == category
            continue
        numbers = as_numbers(series, needed=True)
        assert numbers is not None
        missing = np.isnan(numbers)
        next(rows)[:] = np.where(missing, 0.0, (numbers - column["mean"]) / column["scale"])
        if column["missing"]:
            next(rows)[:] = missing
    return features.T.contiguous()


def as_numbers(series: Series, needed: bool = False) -> np.ndarray | None:
    """A column as float64, NaN where a value is missing; None where it holds texts.

    Raises:
        UserError: it is mostly numbers (or they are `needed`) and holds something else; row and column are told.
    """
    if pd.api.types.is_datetime64_any_dtype(series):
        raise UserError(f"The column '{series.name}' holds dates; turn them into numbers or leave the column out.")
    if pd.api.types.is_bool_dtype(series) and not needed:
        return None  # True and False, as a table of texts has them
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "iuf":  # there are no texts to look for
        numbers = series.to_numpy(np.float64)
        _check_finite(series, np.isinf(numbers))
        return numbers
    numbers = to_numbers(series).to_numpy(dtype=np.float64, na_value=np.nan)
    given = series.notna().to_numpy()
    texts = given & np.isnan(numbers)
    if texts.any() and not needed and texts.sum() > (1 - NUMERIC_SHARE) * given.sum():
        return None
    if not given.any() and not needed:
        return numbers
    _check_finite(series, texts | np.isinf(numbers))
    return numbers


def _check_finite(series: Series, wrong: np.ndarray) -> None:
    if wrong.any():
        place = int(wrong.argmax())
        raise UserError(
            f"Expected a finite number in row {series.index[place] + 1} of column '{series.name}', but got "
            f"{str(series.iloc[place])!r}."
        )


def _number(name: Any, numbers: np.ndarray, train: np.ndarray) -> tuple[Column | None, str]:
    seen = numbers[train]
    known = seen[~np.isnan(seen)]
    if len(known) == 0:
        return None, f"Column '{name}' has no value in the training split and is left out."
    scale = float(known.std())
    missing = bool(np.isnan(numbers).any())
    if scale <= 1e-12 * max(1.0, float(np.abs(known).max())):
        if not missing:
            return None, f"Column '{name}' is constant in the training split and is left out."
        scale = 1.0
    column = {"name": str(name), "kind": "number", "mean": float(known.mean()), "scale": scale, "missing": missing}
    count = int(np.isnan(numbers).sum())
    note = f"Column '{name}' lacks {count} values: set to the training mean, with a feature that says so."
    return column, note if missing else ""


def _category(series: Series, train: np.ndarray) -> tuple[Column | None, str]:
    texts = _texts(series)
    counts = texts[train].value_counts()
    if len(counts) < 2:
        return None, f"Column '{series.name}' is constant in the training split and is left out."
    if len(counts) > max(2, train.sum() / 2):
        numbers = int(to_numbers(series).notna().sum())
        mixed = f" ({numbers} of its cells are numbers: empty the others to keep it)" if numbers else ""
        return None, f"Column '{series.name}' differs in nearly every row and is left out{mixed}."
    categories = sorted(counts.index[:MOST_CATEGORIES])
    column = {"name": str(series.name), "kind": "category", "categories": categories}
    told = []
    if series.isna().any():
        told.append(
            f"Column '{series.name}' lacks {int(series.isna().sum())} values: missing is a category of its own."
        )
    if len(counts) > MOST_CATEGORIES:
        told.append(f"Column '{series.name}' keeps its {MOST_CATEGORIES} most frequent of {len(counts)} categories.")
    return column, " ".join(told)


def class_name(value: Any) -> str:
    """What a class is called whose value in a table is `value`: whole numbers without a point."""
    return str(int(value)) if isinstance(value, float | np.floating) and value == int(value) else str(value)


def class_index(value: Any, classes: Sequence[str]) -> int | None:
    """Which of the named classes a value in a table is; None where it is none of them.

    Example:
        >>> class_index("2.0", ("1", "2"))
        1
    """
    text = str(value)
    if text not in classes:
        try:
            text = class_name(float(text))
        except (ValueError, OverflowError):
            return None
    return classes.index(text) if text in classes else None


def _texts(series: Series) -> Series:
    return series.astype(object).where(series.notna(), "(missing)").map(str)
