"""Reads tables: .csv, .parquet and .npz files to a pandas DataFrame."""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from labo.errors import UserError

# pandas' own annotations make unions of everything; what is done with these is tested instead.
Frame = Any
Series = Any

_NESTED = (list, dict, tuple, set, np.ndarray)
ENDINGS = (".csv", ".parquet", ".npz")


def read_frame(path: str | Path) -> Frame:
    """The table in a file, one row an example; do not change it (it is kept for the next call).

    An .npz file holds arrays of the same length: (N,) is a column, (N, D) the columns name_0 … name_{D-1}, more
    dimensions are flattened.

    Raises:
        UserError: the file is missing, empty, damaged or of another kind.
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"Expected a file ending in {', '.join(ENDINGS)}, but got '{path}'.")
    if not path.is_file():
        raise UserError(f"No such file: '{path}'.")
    state = path.stat()
    if state.st_size == 0:
        raise UserError(f"The file '{path}' is empty.")
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=2)
def _read(path: Path, changed: int, size: int) -> Frame:
    try:
        frame = _parse(path)
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"The file '{path}' is not UTF-8 text.") from error
    except (ValueError, OSError, zipfile.BadZipFile, pd.errors.ParserError, pd.errors.ParserWarning) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "pickled" in reason:
            reason = "it is no .npz file of plain arrays"
        raise UserError(f"Cannot read '{path}': {reason}") from error
    if frame.empty:
        raise UserError(f"The file '{path}' holds no rows.")
    names = [str(name) for name in frame.columns]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"The file '{path}' has two columns named '{twice[0]}'.")
    nested = [name for name in names if _is_nested(frame[name])]
    if nested:
        raise UserError(
            f"The column '{nested[0]}' in '{path}' holds lists or objects; a cell must be a number or a text."
        )
    frame.columns = names
    return frame.reset_index(drop=True)


def _is_nested(series: Series) -> bool:
    """Whether a cell holds more than one value; a column of numbers need not be looked through."""
    return not pd.api.types.is_numeric_dtype(series) and series.map(lambda value: isinstance(value, _NESTED)).any()


def _parse(path: Path) -> Frame:
    kind = path.suffix.lower()
    if kind == ".csv":
        # Everything as text: what is a number is decided by column, with the row told where one is not.
        with warnings.catch_warnings():
            # Rows longer than the header would lose a value, or shift the columns.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(path, dtype=str, skipinitialspace=True, encoding="utf-8-sig", index_col=False)
    return pd.read_parquet(path) if kind == ".parquet" else _parse_arrays(path)


def _parse_arrays(path: Path) -> Frame:
    columns: dict[str, Any] = {}
    # The file is opened here, because np.load leaves it open when it is damaged.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        lengths = {name: arrays[name].shape[:1] for name in arrays.files}
        if len(set(lengths.values())) > 1 or () in lengths.values():
            told = ", ".join(f"{name} {arrays[name].shape}" for name in arrays.files)
            raise UserError(f"Expected the arrays in '{path}' to have one row per example each, but got {told}.")
        for name in arrays.files:
            array = arrays[name]
            if array.ndim == 1:
                columns[name] = array
            else:
                flat = array.reshape(len(array), -1)
                columns |= {f"{name}_{i}": flat[:, i] for i in range(flat.shape[1])}
    return pd.DataFrame(columns)


def to_numbers(series: Series) -> Series:
    """A column as numbers, NaN where it holds something else."""
    return pd.to_numeric(series, errors="coerce")


def digest(path: str | Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            found.update(piece)
    return found.hexdigest()[:16]
