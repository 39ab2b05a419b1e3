"""The classes of a table: a class is a string, and numbers only order them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from labo.errors import UserError
from labo.tasks.labels import class_name
from labo.tasks.tabular.cells import MISSING_WORDS, Series, to_numbers

# Recorded with a run: 2 takes a class as the string that it is. Runs without it identified classes by number (`001` was
# `1`), and took words such as None for a missing class.
RULES = 2
# Numbers that are not whole are a quantity if there are more.
MAX_FRACTIONAL_CLASSES = 100
# So are whole numbers if there are more, and at least this fraction of them occur once.
SINGLE_FRACTION = 0.1


def class_texts(series: Series) -> np.ndarray:
    """The class of each row as a string, object (N,); None where the cell is empty.

    Raises:
        UserError: a number is infinite.
    """
    present = series.notna().to_numpy()
    texts = np.full(len(series), None, dtype=object)
    values = series[present]
    if isinstance(series.dtype, np.dtype) and series.dtype.kind in "biuf":
        if (infinite := np.isinf(series.to_numpy())).any():
            row = series.index[int(infinite.argmax())] + 1
            raise UserError(f"Expected a class in row {row} of column '{series.name}', but got an infinite number.")
        distinct, inverse = np.unique(values.to_numpy(), return_inverse=True)
        names = np.array([class_name(value) for value in distinct], dtype=object)
        texts[present] = names[inverse] if len(distinct) else []
    else:
        texts[present] = [class_name(value) or None for value in values]
    return texts


def read_classes(texts: np.ndarray, series: Series, path: str) -> tuple[str, ...]:
    """The classes of strings (N,), none of them missing, in numerical order, else in alphabetical.

    Args:
        texts: from `class_texts`.
        series: the column, with the row numbers of the file.
        path: of the file, for errors.

    Raises:
        UserError: there are fewer than two, one has a single example, or they are a quantity.
    """
    import pandas as pd

    counts = pd.Series(texts).value_counts()
    if len(counts) < 2:
        what = f"holds one class only, '{counts.index[0]}'" if len(counts) else "is empty in every row"
        raise UserError(f"The column '{series.name}' in '{path}' {what}.")
    numbers = dict(zip(counts.index, to_numbers(pd.Series(counts.index)), strict=True))
    numeric = not any(np.isnan(number) for number in numbers.values())
    if numeric and len(counts) > MAX_FRACTIONAL_CLASSES:
        whole = all(number % 1 == 0 for number in numbers.values())
        if not whole or (counts == 1).sum() >= SINGLE_FRACTION * len(counts):
            raise UserError(
                f"The column '{series.name}' holds {len(counts)} different numbers: a quantity, not classes; labo "
                "trains classifiers."
            )
    if counts.min() == 1:
        single = counts.index[int((counts == 1).to_numpy().argmax())]
        row = series.index[int((texts == single).argmax())]
        raise UserError(
            f"The class '{single}' has a single example (row {row + 1}), which cannot be in both training and test: "
            "merge the class with another or leave it out."
        )
    return tuple(sorted(counts.index, key=lambda name: (numbers[name], name) if numeric else (0.0, name)))


def class_codes(texts: np.ndarray, classes: Sequence[str], rules: int = RULES) -> np.ndarray:
    """The indices of strings (N,) in `classes`, int64 (N,): -1 where one is missing, -2 where it is no class.

    Args:
        texts: from `class_texts`.
        classes: of a run.
        rules: `RULES` of the run; 1 for a run without.
    """
    index_of = {name: index for index, name in enumerate(classes)}
    codes = {text: index_of.get(text, -2) for text in set(texts) - {None}}
    if rules == 1:
        codes |= {text: _code_by_number(text, index_of) for text, code in codes.items() if code == -2}
    return np.array([-1 if text is None else codes[text] for text in texts], dtype=np.int64)


def _code_by_number(text: str, index_of: dict[str, int]) -> int:
    if text in MISSING_WORDS:
        return -1
    try:
        return index_of.get(class_name(float(text)), -2)
    except (ValueError, OverflowError):
        return -2


def count_note(column: str, classes: Sequence[str], counts: Sequence[int]) -> str:
    """The classes and how many rows each has, in a sentence.

    Example:
        >>> count_note("kind", ("big", "small"), [52, 68])
        "2 classes in 'kind': big (52 rows), small (68)."
    """
    shown = [f"{name} ({count})" for name, count in zip(classes, counts, strict=True)]
    shown[0] = f"{classes[0]} ({counts[0]} rows)"
    return f"{len(classes)} classes in '{column}': {abbreviate(shown)}."


def unlabelled_note(column: str, count: int) -> str:
    """How many rows have no class, in a sentence."""
    if count == 1:
        return f"1 row has no '{column}' and is left out."
    return f"{count} rows have no '{column}' and are left out."


def abbreviate(names: Sequence[str], most: int = 12) -> str:
    """The first of many names.

    Example:
        >>> abbreviate(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
