"""Safe unpickling of plain values and arrays: no code in a pickle is executed."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from labo.errors import UserError, first_line

# Arrays are rebuilt here from their dtype, shape and bytes, checked, without NumPy's unpickling.
_PLAIN_KINDS = "biuf"


def loads(content: bytes, name: str) -> Any:
    """The lists, dicts, tuples, strings, bytes, numbers and plain arrays in a pickle; strings of Python 2 are bytes.

    Args:
        content: the pickle.
        name: of its file, for errors.

    Raises:
        UserError: the pickle refers to anything else (the message says what), or is damaged.
    """
    try:
        return _plain(_Unpickler(io.BytesIO(content), encoding="bytes").load())
    except UserError as error:
        raise UserError(f"Refused to read '{name}': {error}") from error
    except Exception as error:  # the error depends on where the pickle is damaged
        raise UserError(f"Cannot read '{name}': it is a damaged pickle ({first_line(error)}).") from error


class _DType:
    """Stands in for numpy.dtype."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        self.order = order.decode("ascii") if isinstance(order, bytes) else order

    def make(self) -> np.dtype:
        dtype = np.dtype(self.code) if isinstance(self.code, str) else np.dtype(object)
        if dtype.kind not in _PLAIN_KINDS:
            raise UserError(f"it holds an array of type {self.code}, and only numbers are plain.")
        return dtype.newbyteorder(self.order) if self.order in ("<", ">") else dtype


class _Array:
    """Stands in for an array while the pickle is read."""

    def __init__(self) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def make(self) -> np.ndarray:
        _, shape, dtype, fortran_order, content = self.state
        content = content.encode("latin1") if isinstance(content, str) else content
        if not isinstance(dtype, _DType) or not isinstance(content, bytes):
            raise UserError("it holds an array of objects, and only numbers are plain.")
        return np.frombuffer(content, dtype.make()).reshape(shape, order="F" if fortran_order else "C")


class _ArrayClass:
    """Stands in for numpy.ndarray, which pickles name but never call."""


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.state = (1, shape, dtype, order == "F", bytes(content))
    return array


def _latin1(text: str, *_: Any) -> bytes:
    """The encoding of bytes in pickles of Python 3 that Python 2 can read."""
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): _ArrayClass,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise UserError(f"it asks for {module}.{name}, and nothing but plain values and arrays is read.")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise UserError("it refers to an object outside of it.")


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.make()
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise UserError(f"it holds a {type(value).__name__.strip('_')}, and only plain values and arrays are read.")
