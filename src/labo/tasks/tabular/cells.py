"""What the cells of a column are: numbers, dates, truth values, and words for a missing value."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np

from labo.errors import UserError

Series = Any

# Cells that say that a value is missing, as pandas' `read_csv` has them; classes are never read so.
MISSING_WORDS = frozenset(
    {"#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL"}
    | {"NaN", "None", "n/a", "nan", "null"}
)
# Further ones among numbers; in a column of categories they are categories.
MISSING_NUMBERS = {word.lower() for word in MISSING_WORDS} | {"?", "-", "--", "–", "—", "."}
# A column of strings is numeric if at least this fraction of its values are numbers; the other strings are then errors.
NUMERIC_FRACTION = 0.9
DATE_FRACTION = 0.9
# Features are float32.
MAX_NUMBER = float(np.finfo(np.float32).max)

_COMMA_NUMBER = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
_TIME = r"([ T]\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?\s*(Z|[AaPp][Mm]|[+-]\d{2}:?\d{2})?)?"
_ISO_DATE = re.compile(rf"(\d{{4}})[-/.](\d{{1,2}})[-/.](\d{{1,2}}){_TIME}")
_MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_OTHER_DATE = re.compile(
    rf"(\d{{1,2}}([-/.])\d{{1,2}}\2\d{{4}}|\d{{2}}([/.])\d{{2}}\3\d{{2}}|\d{{1,2}}[-. ]+{_MONTH}[-, ]+\d{{2,4}}"
    rf"|{_MONTH} \d{{1,2}},? \d{{4}}){_TIME}",
    re.IGNORECASE,
)
_BOOLEANS = {"true": "True", "false": "False", "1": "True", "0": "False", "1.0": "True", "0.0": "False"}


class AmbiguousCommaError(UserError):
    """Commas in numbers that may mark decimals or separate thousands."""


@dataclass(frozen=True)
class Numbers:
    """The values of a column, float64 (N,), NaN where missing; `words` says which cells were taken for missing."""

    values: np.ndarray
    words: str = ""
    decimal_comma: bool = False


def to_numbers(values: Any) -> Any:
    """Values as numbers, NaN for others."""
    import pandas as pd

    return pd.to_numeric(values, errors="coerce")


def missing_words(series: Series, *, numbers: bool = False, keep: Iterable[str] = ()) -> tuple[Series, str]:
    """A column without its words for missing, and which they are: " (taken for missing: 3 'NA', …)".

    Args:
        series: of any type.
        numbers: whether it is a column of numbers, which `?` and `-` are none of.
        keep: words that are values.
    """
    distinct = [cell for cell in series.dropna().unique() if isinstance(cell, str)]
    words = [cell for cell in distinct if (cell.lower() in MISSING_NUMBERS if numbers else cell in MISSING_WORDS)]
    found = series.isin(set(words) - set(keep))
    if not found.any():
        return series, ""
    counts = ", ".join(f"{count} '{word}'" for word, count in series[found].value_counts().items())
    first = series.index[int(found.to_numpy().argmax())] + 1
    return series.mask(found), f" (taken for missing: {counts}, the first in row {first})"


def read_numbers(series: Series, decimal: str | None = None, *, required: bool = False) -> Numbers | None:
    """A column as numbers; None for a column of strings.

    Args:
        series: of any type.
        decimal: "." or ","; where it is None, commas are decimal if no cell has a point and they cannot be thousands.
        required: whether strings are errors.

    Raises:
        UserError: it is mostly numbers, or numbers are `required`, and another value occurs (the message gives its row
            and column); or its commas may be thousands (AmbiguousCommaError).
    """
    import pandas as pd

    if pd.api.types.is_bool_dtype(series) and not required:
        return None  # categories True and False
    if pd.api.types.is_numeric_dtype(series):
        numbers = series.to_numpy(np.float64, na_value=np.nan)
        refuse_large(series, numbers)
        return Numbers(numbers)
    cells, words = missing_words(series, numbers=True)
    present = cells.notna().to_numpy()
    numbers = _parse(cells, decimal or ".")
    others = present & np.isnan(numbers)
    if not required:
        if not present.any() and missing_words(series)[0].notna().any():
            return None  # `?` and `-` alone are categories
        commas = others.copy()
        commas[others] = [_COMMA_NUMBER.fullmatch(str(cell)) is not None for cell in cells[others]]
        if (others & ~commas).sum() > (1 - NUMERIC_FRACTION) * present.sum():
            return None
    used_comma = decimal == ","
    if decimal is None and others.any() and _decimal_commas(cells, others):
        numbers, used_comma = _parse(cells, ","), True
        others = present & np.isnan(numbers)
    _refuse(series, others, "the cell is empty where a number is missing, or --leave-out leaves the column out")
    refuse_large(series, numbers)
    return Numbers(numbers, words, used_comma)


def has_decimal_commas(series: Series) -> bool:
    """Whether a column is numbers with commas that cannot separate thousands."""
    try:
        numbers = read_numbers(series)
    except UserError:
        return False
    return numbers is not None and numbers.decimal_comma


def _parse(cells: Series, decimal: str) -> np.ndarray:
    if decimal == ",":
        strings = cells.astype(object).where(cells.isna(), cells.map(str))
        cells = strings.map(lambda cell: None if "." in cell else cell.replace(",", "."), na_action="ignore")
    return to_numbers(cells).to_numpy(dtype=np.float64, na_value=np.nan)


def _decimal_commas(cells: Series, others: np.ndarray) -> bool:
    """Whether the cells that are no numbers are some with decimal commas.

    Raises:
        UserError: every comma may separate thousands.
    """
    distinct = [str(cell) for cell in cells[others].unique()]
    if not all(_COMMA_NUMBER.fullmatch(cell) for cell in distinct):
        return False
    if any("." in str(cell) for cell in cells[~others].dropna().unique()):
        return False
    if all(_THOUSANDS.fullmatch(cell) for cell in distinct):
        row = cells.index[int(others.argmax())] + 1
        raise AmbiguousCommaError(
            f"The comma of '{distinct[0]}' in row {row} of column '{cells.name}' may mark decimals or thousands: pass "
            "--decimal , for decimals, or write numbers without thousands separators."
        )
    return True


def refuse_large(series: Series, numbers: np.ndarray) -> None:
    """Refuse numbers (N,), made of a column, that are no float32.

    Raises:
        UserError: there are; the message gives the cell.
    """
    _refuse(series, np.abs(numbers) > MAX_NUMBER, "features are float32 numbers, up to 3.4e38")


def _refuse(series: Series, wrong: np.ndarray, cure: str) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"Expected a finite number in row {series.index[row] + 1} of column '{series.name}', but got "
            f"{str(series.iloc[row])!r}; {cure}."
        )


def boolean(text: str) -> str:
    """One spelling, True or False, of true, TRUE, 1 and the like; another string as it is."""
    return _BOOLEANS.get(text.lower(), text)


def are_booleans(values: Iterable[str]) -> bool:
    """Whether the distinct strings of a column are truth values, not numbers alone.

    Example:
        >>> are_booleans(["True", "false", "1"]), are_booleans(["0", "1"]), are_booleans(["true", "maybe"])
        (True, False, False)
    """
    lowered = {value.lower() for value in values}
    return lowered <= set(_BOOLEANS) and bool(lowered & {"true", "false"})


def holds_dates(series: Series) -> bool:
    """Whether a column holds dates, times of a day included: by its type, or by nine tenths of its cells."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(series) or pd.api.types.is_bool_dtype(series):
        return False
    if pd.api.types.is_datetime64_any_dtype(series) or isinstance(series.dtype, pd.PeriodDtype):
        return True
    counts = missing_words(series)[0].value_counts()
    dates = sum(int(count) for cell, count in counts.items() if isinstance(cell, date) or _is_date(str(cell)))
    return dates > 0 and dates >= DATE_FRACTION * counts.sum()


def _is_date(text: str) -> bool:
    return bool(_ISO_DATE.fullmatch(text) or _OTHER_DATE.fullmatch(text))


def date_parts(series: Series) -> dict[str, Series]:
    """The year, the month and the day of a column of dates, NaN where a date is missing.

    Raises:
        UserError: a cell is no date, or one whose day and month could be each other.
    """
    import pandas as pd

    cells = missing_words(series)[0]
    parsed = {cell: _parse_date(cell) for cell in cells.dropna().unique()}
    wrong = cells.isin([cell for cell, parts in parsed.items() if parts is None]).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"Expected a date such as 2024-12-31 in row {series.index[row] + 1} of column '{series.name}', but got "
            f"'{series.iloc[row]}': write the year first, or leave the column out with --leave-out."
        )
    nothing = (np.nan,) * 3
    rows = [nothing if pd.isna(cell) else parsed[cell] for cell in cells]
    return {
        part: pd.Series([row[index] for row in rows], index=series.index, name=series.name, dtype=np.float64)  # pyright: ignore[reportOptionalSubscript]
        for index, part in enumerate(("year", "month", "day"))
    }


def _parse_date(cell: Any) -> tuple[int, int, int] | None:
    if hasattr(cell, "year") and hasattr(cell, "day"):
        return cell.year, cell.month, cell.day
    match = _ISO_DATE.fullmatch(str(cell))
    try:
        parsed = date(*(int(match.group(index)) for index in (1, 2, 3))) if match else None
    except ValueError:
        return None
    return None if parsed is None else (parsed.year, parsed.month, parsed.day)
