"""Arrays in .npz files, read only where the file holds what it claims to and memory has room for it."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from labo.errors import UserError, first_line
from labo.tasks.file_limits import check_unpacked, require_file
from labo.wording import byte_size

_SUFFIX = ".npy"
_HEADERS: dict[tuple[int, int], Any] = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def load(path: Path) -> dict[str, np.ndarray]:
    """The arrays in an .npz file; arrays of objects are refused, because loading them executes code.

    Raises:
        UserError: the file is missing, damaged, unpacks to more than --max-bytes, or does not hold plain arrays.
    """
    require_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(path, [member.filename for member in members])
            check_unpacked(path, sum(member.file_size for member in members))
            return {member.filename.removesuffix(_SUFFIX): _read(archive, member) for member in members}
    except UserError:
        raise
    except zipfile.BadZipFile as error:
        raise UserError(f"Cannot read '{path}': it is no .npz file of plain arrays.") from error
    except Exception as error:  # the error of a damaged file depends on where it is damaged
        raise UserError(f"Cannot read '{path}': {first_line(error)}.") from error


def _check_members(path: Path, names: list[str]) -> None:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"The file '{path}' holds two arrays of the name '{twice.removesuffix(_SUFFIX)}'.")
    other = next((name for name in names if not name.endswith(_SUFFIX)), None)
    if other is None:
        return
    if any(name.endswith("data.pkl") for name in names):
        raise UserError(f"Cannot read '{path}': it is an archive of PyTorch; save the arrays with numpy.savez.")
    raise UserError(f"Cannot read '{path}': it holds '{other}', which is no array.")


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """An array whose header claims as many bytes as there are.

    Raises:
        ValueError: it does not, or holds objects.
    """
    name = member.filename.removesuffix(_SUFFIX)
    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"the array '{name}' is of the unknown version {version}")
        shape, _, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise UserError(
                f"The array '{name}' in '{archive.filename}' holds Python objects, so it is no .npz file of plain "
                f"arrays: save {name}.astype(str) or an array of numbers."
            )
        claimed, held = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if claimed != held or min(shape, default=0) < 0:
            raise ValueError(f"the array '{name}' claims the shape {shape}, {byte_size(claimed)}, but holds {held:,} B")
    with archive.open(member) as file:
        return npy.read_array(file, allow_pickle=False)
