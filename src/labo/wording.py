"""Counts, sizes and names in sentences."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str = "") -> str:
    """A count with its noun; the plural ends in s if not given.

    Example:
        >>> counted(1, "row"), counted(1_200, "row"), counted(2, "class", "classes")
        ('1 row', '1,200 rows', '2 classes')
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def byte_size(count: float) -> str:
    """A number of bytes with its unit.

    Example:
        >>> byte_size(12_500), byte_size(8e13)
        ('12.5 kB', '80 TB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def unicode_name(name: str) -> str:
    r"""A file's name as text: bytes of it that are not UTF-8 are written as escapes.

    Example:
        >>> import os
        >>> print(unicode_name(os.fsdecode(b"caf\xe9")))
        caf\udce9
    """
    return name.encode("utf-8", "backslashreplace").decode()
