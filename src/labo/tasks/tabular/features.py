"""Columns of a table to features: numbers standardised, categories one-hot, missing values marked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labo.errors import UserError
from labo.tasks.tabular import cells
from labo.tasks.tabular.cells import Numbers, Series
from labo.tasks.tabular.table_files import Frame

MAX_CATEGORIES = 100
# Both strings and numbers: a column with at least this fraction of numbers, but too few to be numeric.
MIXED_FRACTION = 0.1
# Cells with so many words on average are free text.
FREE_TEXT_WORDS = 3
# Columns that `unseen_values` names.
SHOWN_COLUMNS = 8
# Names of columns that had none; "" and the others are pandas' and parquet's.
_UNNAMED = re.compile(r"|Unnamed: \d+|__index_level_\d+__")
_MISSING = "(missing)"

Column = dict[str, Any]


def fit(
    frame: Frame, train: np.ndarray, *, decimal: str | None = None, expand_dates: bool = False
) -> tuple[list[Column], list[str]]:
    """Fit the encoding of each column on the rows of the mask `train` (N,).

    Args:
        frame: N rows.
        train: bool (N,).
        decimal: "." or ","; found in the cells if None.
        expand_dates: whether dates become their year, month and day; they are refused otherwise.

    Returns:
        The columns as JSON-able dicts, and sentences to show to the user.

    Raises:
        UserError: a string among numbers (the message gives its row and column), a date, infinite numbers, or no
            column left to learn from.
    """
    try:
        columns, commas, notes = _fit_columns(frame, train, decimal, expand_dates)
    except cells.AmbiguousCommaError:
        # The file of a program that writes decimal commas has them elsewhere too.
        if not any(cells.has_decimal_commas(frame[name]) for name in frame.columns):
            raise
        columns, commas, notes = _fit_columns(frame, train, ",", expand_dates)
    if commas and decimal is None:
        more = len(commas) - 1
        others = f" and {more} more column{'s' * (more > 1)}" if more else ""
        notes.append(f"Commas are read as decimal marks in '{commas[0]}'{others}; --decimal says otherwise.")
    if not columns:
        raise UserError("No column is left to learn from: every one is constant, empty or different in every row.")
    return columns, notes


def _fit_columns(
    frame: Frame, train: np.ndarray, decimal: str | None, expand_dates: bool
) -> tuple[list[Column], list[str], list[str]]:
    """(the columns, the names of those with decimal commas, sentences to show)."""
    columns: list[Column] = []
    commas: list[str] = []
    notes: list[str] = []
    for name in frame.columns:
        for part, series in _parts(frame[name], expand_dates):
            label = f"{name}, {part}" if part else str(name)
            numbers = cells.read_numbers(series, decimal)
            if numbers is None:
                column, note = _fit_category(series, train)
            else:
                column, note = _fit_number(label, numbers, train)
                commas += [label] if column and numbers.decimal_comma else []
            if column:
                columns.append({"name": str(name), **column, **({"part": part} if part else {})})
            if note:
                notes.append(note)
    return columns, commas, notes


def width(columns: Sequence[Mapping[str, Any]]) -> int:
    """The number of features of the columns."""
    return sum(len(c["categories"]) if c["kind"] == "category" else 1 + c["missing"] for c in columns)


def encode(frame: Frame, columns: Sequence[Mapping[str, Any]], decimal: str | None = None) -> Tensor:
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
            strings = _strings(series, column["categories"]).to_numpy(dtype=object)
            for category in column["categories"]:
                next(rows)[:] = strings == category
            continue
        numbers = _numbers(series, column, decimal)
        missing = np.isnan(numbers)
        standardised = np.where(missing, 0.0, (numbers - column["mean"]) / column["scale"])
        cells.refuse_large(series, standardised)
        next(rows)[:] = standardised
        if column["missing"]:
            next(rows)[:] = missing
    return features.T.contiguous()


def unseen_values(frame: Frame, columns: Sequence[Mapping[str, Any]], decimal: str | None = None) -> tuple[str, ...]:
    """A sentence for each column with values that training never saw, and how many they are."""
    notes = []
    for column in columns:
        series, name = frame[column["name"]], column["name"]
        if column["kind"] == "category":
            strings = _strings(series, column["categories"])
            unseen = ~strings.isin(column["categories"]).to_numpy()
            few = len(column["categories"]) < MAX_CATEGORIES
            what = "were never seen in training" if few else f"are not among the {MAX_CATEGORIES} kept from training"
            effect = "no category is set"
        elif not column["missing"]:
            unseen = np.isnan(_numbers(series, column, decimal))
            what, effect = "are missing, and none was in training", "the training mean stands for them"
        else:
            continue
        if count := int(unseen.sum()):
            first = int(unseen.argmax())
            shown = "" if column["kind"] == "number" else f" ('{strings.iloc[first]}' in row {series.index[first] + 1})"  # pyright: ignore[reportPossiblyUnboundVariable]
            notes.append(f"{count} of {len(series)} values of '{name}' {what}{shown}: {effect}.")
    more = len(notes) - SHOWN_COLUMNS
    return (*notes[:SHOWN_COLUMNS], *([f"So it is with {more} more columns."] if more > 0 else []))


def row_counters(frame: Frame) -> list[str]:
    """The columns without a name that number the rows: whole numbers, another in every row."""
    names = [name for name in frame.columns if _UNNAMED.fullmatch(name)]
    return [name for name in names if _identifies(cells.to_numbers(frame[name]).to_numpy(np.float64, na_value=np.nan))]


def _identifies(numbers: np.ndarray) -> bool:
    """Whether these are whole numbers, another in every row."""
    return bool((numbers % 1 == 0).all()) and len(np.unique(numbers)) == len(numbers)


def _parts(series: Series, expand_dates: bool) -> Iterator[tuple[str, Series]]:
    """(name of the part, "" for the whole; its cells): three of a column of dates, one of any other."""
    if not cells.holds_dates(series):
        yield "", series
    elif expand_dates:
        yield from cells.date_parts(series).items()
    else:
        first = series.dropna().iloc[0]
        raise UserError(
            f"The column '{series.name}' holds dates (such as '{first}'); --option dates=expand makes features of "
            f"their year, month and day, and --leave-out '{series.name}' leaves them out."
        )


def _numbers(series: Series, column: Mapping[str, Any], decimal: str | None) -> np.ndarray:
    if part := column.get("part"):
        return cells.date_parts(series)[part].to_numpy()
    numbers = cells.read_numbers(series, decimal or column.get("decimal"), required=True)
    assert numbers is not None
    return numbers.values


def _fit_number(name: str, numbers: Numbers, train: np.ndarray) -> tuple[Column | None, str]:
    values = numbers.values[train]
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return None, f"Column '{name}' has no value in the training split and is left out."
    scale = float(values.std())
    count = int(np.isnan(numbers.values).sum())
    if scale <= 1e-12 * max(1.0, float(np.abs(values).max())):
        if not count:
            return None, f"Column '{name}' is constant in the training split and is left out."
        scale = 1.0
    column = {"kind": "number", "mean": float(values.mean()), "scale": scale, "missing": count > 0}
    column |= {"decimal": ","} if numbers.decimal_comma else {}
    if count:
        effect = "set to the training mean, with a feature that says so"
        return column, f"Column '{name}' lacks {_values(count)}{numbers.words}: {effect}."
    if _identifies(numbers.values):
        return column, (
            f"Column '{name}' has another whole number in every row: if it identifies the rows, leave it out with "
            f"--leave-out '{name}'."
        )
    return column, ""


def _fit_category(series: Series, train: np.ndarray) -> tuple[Column | None, str]:
    strings = _strings(series)
    counts = strings[train].value_counts()
    if len(counts) < 2:
        return None, f"Column '{series.name}' is constant in the training split and is left out."
    present, words = cells.missing_words(series)
    if len(counts) > max(2, train.sum() / 2):
        texts = strings[present.notna()]
        if texts.str.split().str.len().mean() >= FREE_TEXT_WORDS:
            return None, f"Column '{series.name}' holds free text, which is no feature, and is left out."
        return None, f"Column '{series.name}' differs in nearly every row and is left out{_mixture(present)}."
    categories = sorted(counts.index[:MAX_CATEGORIES])
    notes = []
    if missing := int(present.isna().sum()):
        effect = "missing is a category of its own"
        notes.append(f"Column '{series.name}' lacks {_values(missing)}{words}: {effect}.")
    if len(counts) > MAX_CATEGORIES:
        notes.append(f"Column '{series.name}' keeps its {MAX_CATEGORIES} most frequent of {len(counts)} categories.")
    if mixture := _mixture(present):
        notes.append(f"Column '{series.name}' is taken for categories{mixture}.")
    return {"kind": "category", "categories": categories}, " ".join(notes)


def _values(count: int) -> str:
    return f"{count} value{'s' * (count != 1)}"


def _mixture(series: Series) -> str:
    """How many numbers are among the strings of a column, where they are many: " (49 of its 60 cells are …)"."""
    import pandas as pd

    if pd.api.types.is_bool_dtype(series):
        return ""
    present = series.dropna()
    strings = cells.to_numbers(present).isna().to_numpy()
    numbers = len(present) - int(strings.sum())
    if numbers < MIXED_FRACTION * len(present) or not strings.any():
        return ""
    first = int(strings.argmax())
    return (
        f" ({numbers} of its {len(present)} values are numbers; the first that is not is '{present.iloc[first]}' in "
        f"row {present.index[first] + 1})"
    )


def _strings(series: Series, categories: Sequence[str] = ()) -> Series:
    """The values as strings; those of truth values in one spelling, that of `categories` if they are given."""
    present, _ = cells.missing_words(series, keep=categories)
    strings = present.astype(object).where(present.notna(), _MISSING).map(str)
    known = (set(categories) or set(strings.unique())) - {_MISSING}
    if cells.are_booleans(known):
        spelling = {cells.boolean(name): name for name in categories}
        return strings.map(lambda cell: spelling.get(cells.boolean(cell), cells.boolean(cell)))
    # Earlier versions kept the space at the end of a cell.
    spelling = {name.rstrip(): name for name in categories if name != name.rstrip()}
    return strings.replace(spelling) if spelling else strings
