"""Tables in .csv, .parquet and .npz files, as pandas DataFrames.

pandas is imported when a table is read: `digits` does without it, and starts a second earlier.
"""

from __future__ import annotations

import warnings
import zipfile
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from labo.errors import UserError, first_line

# pandas' own annotations are unions of everything; tests check what is done with these instead.
Frame = Any
Series = Any

_NESTED = (list, dict, tuple, set, np.ndarray)
SUFFIXES = (".csv", ".parquet", ".npz")


def read_frame(path: str | Path) -> Frame:
    """The table in a file, one row per example. The result is cached: do not modify it.

    An .npz file holds arrays of equal length: (N,) is a column, (N, D) the columns name_0 … name_{D-1}; further
    dimensions are flattened.

    Raises:
        UserError: the file is missing, empty, damaged or of another type.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"Expected a file ending in {', '.join(SUFFIXES)}, but got '{path}'.")
    if not path.is_file():
        raise UserError(f"No such file: '{path}'.")
    state = path.stat()
    if state.st_size == 0:
        raise UserError(f"The file '{path}' is empty.")
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=2)
def _read(path: Path, modified_ns: int, size: int) -> Frame:
    import pandas as pd

    try:
        frame = _parse(path)
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"The file '{path}' is not UTF-8 text.") from error
    except (ValueError, OSError, zipfile.BadZipFile, pd.errors.ParserError, pd.errors.ParserWarning) as error:
        reason = "it is no .npz file of plain arrays" if "pickled" in str(error) else first_line(error)
        raise UserError(f"Cannot read '{path}': {reason}.") from error
    if frame.empty:
        raise UserError(f"The file '{path}' holds no rows.")
    names = [str(name) for name in frame.columns]
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    if duplicates:
        raise UserError(f"The file '{path}' has two columns named '{duplicates[0]}'.")
    nested = [name for name in names if _is_nested(frame[name])]
    if nested:
        raise UserError(
            f"The column '{nested[0]}' in '{path}' holds lists or objects; a cell must be a number or a string."
        )
    frame.columns = names
    return frame.reset_index(drop=True)


def _is_nested(series: Series) -> bool:
    """Whether a cell holds more than one value; numeric columns need no check."""
    import pandas as pd

    return not pd.api.types.is_numeric_dtype(series) and series.map(lambda value: isinstance(value, _NESTED)).any()


def _parse(path: Path) -> Frame:
    import pandas as pd

    suffix = path.suffix.lower()
    if suffix == ".csv":
        # All cells are read as strings: types are inferred per column, with errors that give the row.
        with warnings.catch_warnings():
            # Rows longer than the header would lose a value, or shift the columns.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(path, dtype=str, skipinitialspace=True, encoding="utf-8-sig", index_col=False)
    return pd.read_parquet(path) if suffix == ".parquet" else _parse_arrays(path)


def _parse_arrays(path: Path) -> Frame:
    import pandas as pd

    columns: dict[str, Any] = {}
    # Opened here, because np.load leaves a damaged file open.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        lengths = {name: arrays[name].shape[:1] for name in arrays.files}
        if len(set(lengths.values())) > 1 or () in lengths.values():
            shapes = ", ".join(f"{name} {arrays[name].shape}" for name in arrays.files)
            raise UserError(f"Expected the arrays in '{path}' to have one row per example each, but got {shapes}.")
        for name in arrays.files:
            array = arrays[name]
            if array.ndim == 1:
                columns[name] = array
            else:
                flat = array.reshape(len(array), -1)
                columns |= {f"{name}_{i}": flat[:, i] for i in range(flat.shape[1])}
    return pd.DataFrame(columns)


def to_numbers(series: Series) -> Series:
    """A column as numbers, NaN for other values."""
    import pandas as pd

    return pd.to_numeric(series, errors="coerce")
