"""Reads pickles without running what is in them: plain values and arrays, nothing else."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from labo.errors import UserError

# NumPy's own way of unpickling is not used: of an array, its type, shape and bytes are taken, and checked.
_PLAIN_TYPES = "biuf"


def loads(content: bytes, name: str) -> Any:
    """The lists, dicts, tuples, texts, bytes, numbers and plain arrays in a pickle; texts of Python 2 are bytes.

    Raises:
        UserError: the pickle asks for anything else (what, is told), or is damaged.
    """
    try:
        return _plain(_Unpickler(io.BytesIO(content), encoding="bytes").load())
    except UserError as error:
        raise UserError(f"Refused to read '{name}': {error}") from error
    except Exception as error:  # what a damaged pickle raises depends on where it is damaged
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"Cannot read '{name}': it is a damaged pickle ({reason}).") from error


class _Type:
    """Stands for numpy.dtype."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        self.order = order.decode("ascii") if isinstance(order, bytes) else order

    def make(self) -> np.dtype:
        found = np.dtype(self.code) if isinstance(self.code, str) else np.dtype(object)
        if found.kind not in _PLAIN_TYPES:
            raise UserError(f"it holds an array of type {self.code}, and only numbers are plain.")
        return found.newbyteorder(self.order) if self.order in ("<", ">") else found


class _Array:
    """Stands for an array while the pickle is read."""

    def __init__(self) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def make(self) -> np.ndarray:
        _, shape, kind, columns_first, content = self.state
        content = content.encode("latin1") if isinstance(content, str) else content
        if not isinstance(kind, _Type) or not isinstance(content, bytes):
            raise UserError("it holds an array of objects, and only numbers are plain.")
        return np.frombuffer(content, kind.make()).reshape(shape, order="F" if columns_first else "C")


class _ArrayClass:
    """Stands for numpy.ndarray, which is only named, never called."""


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> _Array:
    made = _Array()
    made.state = (1, shape, kind, order == "F", bytes(content))
    return made


def _latin1(text: str, *_: Any) -> bytes:
    """What Python 3 writes for bytes in the pickles that Python 2 reads as well."""
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): _ArrayClass,
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise UserError(f"it asks for {module}.{name}, and nothing but plain values and arrays is read.")
        return _KNOWN[module, name]

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
