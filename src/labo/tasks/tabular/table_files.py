"""Tables in .csv, .parquet and .npz files, as pandas DataFrames.

pandas is imported when a table is read: `digits` does without it, and starts a second earlier.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from labo.errors import UserError, first_line
from labo.tasks import npz_files
from labo.tasks.file_limits import check_unpacked, require_file
from labo.tasks.tabular.csv_files import read_csv, refuse_duplicates

# pandas' own annotations are unions of everything; tests check what is done with these instead.
Frame = Any

_NESTED = (list, dict, tuple, set, np.ndarray)
SUFFIXES = (".csv", ".parquet", ".npz")


def read_frame(path: str | Path, separator: str | None = None) -> Frame:
    """The table in a file, one row per example. The result is cached: do not modify it.

    An .npz file holds arrays of equal length: (N,) is a column, (N, D) the columns name_0 … name_{D-1}; further
    dimensions are flattened. The separator of a .csv file is found in it if it is None.

    Raises:
        UserError: the file is missing, empty, damaged or of another type.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"Expected a file ending in {', '.join(SUFFIXES)}, but got '{path}'.")
    require_file(path)
    state = path.stat()
    if state.st_size == 0:
        raise UserError(f"The file '{path}' is empty.")
    return _read(path, state.st_mtime_ns, state.st_size, separator)


@lru_cache(maxsize=2)
def _read(path: Path, modified_ns: int, size: int, separator: str | None) -> Frame:
    try:
        frame = _parse(path, separator)
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"The file '{path}' is not UTF-8 text: save it as UTF-8.") from error
    except (ValueError, OSError) as error:
        raise UserError(f"Cannot read '{path}': {first_line(error)}.") from error
    if frame.empty:
        raise UserError(f"The file '{path}' holds no rows.")
    names = [str(name) for name in frame.columns]
    refuse_duplicates(names, path)
    frame.columns = names
    return frame.reset_index(drop=True)


def _parse(path: Path, separator: str | None) -> Frame:
    import pandas as pd

    suffix = path.suffix.lower()
    if suffix == ".csv":
        # All cells are read as strings: types are inferred per column, with errors that give the row.
        return read_csv(path, separator)
    if suffix == ".npz":
        return pd.DataFrame(_columns(_read_arrays(path), path))
    return _read_parquet(path)


def _read_parquet(path: Path) -> Frame:
    import pandas as pd
    import pyarrow.parquet

    refuse_duplicates(pyarrow.parquet.read_schema(path).names, path)
    metadata = pyarrow.parquet.read_metadata(path)
    check_unpacked(path, sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)))
    frame = pd.read_parquet(path)
    for name, dtype in frame.dtypes.items():
        if isinstance(dtype, pd.CategoricalDtype):
            frame[name] = frame[name].astype(object)
        elif dtype == np.dtype(object):
            if frame[name].map(lambda cell: isinstance(cell, _NESTED)).any():
                raise UserError(
                    f"The column '{name}' in '{path}' holds lists or objects; a cell must be a number or a string."
                )
            frame[name] = frame[name].map(partial(_decode, name=str(name), path=path), na_action="ignore")
    return frame


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    arrays = npz_files.load(path)
    for name, array in arrays.items():
        if array.dtype.kind not in "biufUSM":
            raise UserError(f"The array '{name}' in '{path}' holds {array.dtype}, no numbers, strings or dates.")
        if array.dtype.kind == "S":
            arrays[name] = np.array([_decode(cell, name, path) for cell in array.flat]).reshape(array.shape)
    return arrays


def _columns(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """The columns of arrays, of which each has a row per example."""
    lengths = {array.shape[:1] for array in arrays.values()}
    if len(lengths) > 1 or () in lengths:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise UserError(f"Expected the arrays in '{path}' to have one row per example each, but got {shapes}.")
    columns: list[tuple[str, np.ndarray]] = []
    for name, array in arrays.items():
        if array.ndim == 1:
            columns.append((name, array))
        else:
            flat = array.reshape(len(array), -1)
            columns += [(f"{name}_{index}", flat[:, index]) for index in range(flat.shape[1])]
    refuse_duplicates([name for name, _ in columns], path)
    return dict(columns)


def _decode(cell: Any, name: str, path: Path) -> Any:
    """A cell of bytes as the string that it is."""
    if not isinstance(cell, bytes):
        return cell
    try:
        return cell.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"The column '{name}' in '{path}' holds bytes that are not UTF-8 text, such as {cell[:20]!r}: save it as "
            "strings."
        ) from error
