"""Data sets of Hugging Face's `datasets` library: on this disk, or from its hub when that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from labo.errors import UserError, unknown
from labo.tasks.images.dataset import PART_NAMES, ImageSet, Part
from labo.tasks.images.decoding import Encoded, Numbered
from labo.tasks.images.npz import numbered


class Rows(Encoded):
    """The pictures in a column of a data set."""

    def __init__(self, rows: Any, column: str, source: str) -> None:
        self.rows, self.column, self.name = rows, column, Numbered(source, "row")

    def __len__(self) -> int:
        return len(self.rows)

    def picture(self, index: int) -> tuple[str, Path | bytes]:
        """See `Encoded.picture`."""
        found = self.rows[index][self.column] or {}
        name = self.name(index)
        if found.get("bytes") is not None:
            return name, found["bytes"]
        path = Path(found.get("path") or name)
        return str(path), path


def is_saved(path: Path) -> bool:
    """Whether `datasets` reads this: a data set saved by it, a .parquet file, or a folder with such files."""
    if path.is_file():
        return path.suffix.lower() == ".parquet"
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json")) or bool(parquets(path))


def parquets(folder: Path) -> list[Path]:
    """The .parquet files in a folder, else in one folder in it, where the hub's repositories have them.

    Raises:
        UserError: several folders in it hold some: each is a data set.
    """
    found = sorted(folder.glob("*.parquet"))
    if found:
        return found
    below = sorted(folder.glob("*/*.parquet"))
    homes = sorted({path.parent.name for path in below})
    if len(homes) > 1:
        raise UserError(f"'{folder}' holds data sets in its folders {', '.join(homes)}: name one of them.")
    return below


def read(data: str, target: str | None = None) -> ImageSet:
    """The pictures of a data set: a path on this disk, else the name of one on the hub, which is downloaded.

    The column of pictures is found by its type, that of classes by its name, `target`, or its type.

    Raises:
        UserError: `datasets` cannot read this, or there is no such column.
    """
    splits = {name: rows for name, rows in _load(data).items() if PART_NAMES.get(str(name).lower())}
    parts = {PART_NAMES[str(name).lower()]: rows for name, rows in splits.items()}
    if "train" not in parts:
        raise UserError(f"The data set '{data}' has no part train.")
    features = parts["train"].features
    image, label = _image_column(features, data), _label_column(features, data, target)
    notes, values, encoded = [], {}, {}
    for name, rows in parts.items():
        found = _labels(rows, label, f"{data}, {name}")
        if name != "train" and found.dtype.kind == "i" and len(found) and (found == -1).all():
            notes.append(f"The {name} part of '{data}' has no labels and is left out.")
            continue
        values[name], encoded[name] = found, Rows(_undecoded(rows, image), image, f"{data}, {name}")
    labels, classes = numbered(values, getattr(features[label], "names", None))
    return ImageSet(classes, {name: Part(encoded[name], labels[name]) for name in values}, tuple(notes))


def fingerprint(data: str) -> str:
    """What `datasets` itself tells one state of a data set by."""
    return "-".join(str(rows._fingerprint) for _, rows in sorted(_load(data).items()))


def _load(data: str) -> Mapping[Any, Any]:
    import datasets

    path = Path(data)
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        if path.is_file():
            found = datasets.load_dataset("parquet", data_files={"train": str(path)})
        elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            found = datasets.load_from_disk(data)
        elif path.is_dir():
            found = datasets.load_dataset("parquet", data_files=_by_part(parquets(path)))
        else:
            found = datasets.load_dataset(data)
    except Exception as error:  # the library raises whatever lies beneath it
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"Cannot read the data set '{data}': {reason}.") from error
    finally:
        if shown:
            datasets.enable_progress_bars()
    return found if isinstance(found, Mapping) else {"train": found}


def _by_part(files: list[Path]) -> dict[str, list[str]]:
    """Files by the part that their names begin with, as in test-00000-of-00001.parquet; others train."""
    found: dict[str, list[str]] = {}
    for file in files:
        said = file.name.lower().replace("_", "-").replace(".", "-").partition("-")[0]
        found.setdefault(PART_NAMES.get(said, "train"), []).append(str(file))
    return found


def _image_column(features: Mapping[str, Any], data: str) -> str:
    found = [name for name, feature in features.items() if _holds_pictures(feature)]
    if len(found) != 1:
        told = f"the columns {', '.join(found)}" if found else f"none among {', '.join(features)}"
        raise UserError(f"Expected '{data}' to have one column of pictures, but got {told}.")
    return found[0]


def _holds_pictures(feature: Any) -> bool:
    if type(feature).__name__ == "Image" or getattr(feature, "dtype", "") in ("binary", "large_binary"):
        return True
    return isinstance(feature, Mapping) and feature.keys() == {"bytes", "path"}


def _label_column(features: Mapping[str, Any], data: str, target: str | None) -> str:
    if target is not None:
        if target not in features:
            raise unknown("column", target, features)
        return target
    found = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    found = found or [name for name in ("label", "labels", "target", "class") if name in features]
    if len(found) != 1:
        told = ", ".join(found or features)
        raise UserError(f"Which column of '{data}' holds the classes? Name one by --target: {told}.")
    return found[0]


def _labels(rows: Any, column: str, source: str) -> np.ndarray:
    found = list(rows[column])
    missing = next((index for index, value in enumerate(found) if value is None), None)
    if missing is not None:
        raise UserError(f"Row {missing + 1} of '{source}' has no '{column}'.")
    labels = np.array(found)
    if labels.ndim != 1 or labels.dtype.kind not in "iuUb":
        raise UserError(f"Expected the column '{column}' of '{source}' to hold whole numbers or texts.")
    return labels.astype(np.int64) if labels.dtype.kind in "iub" else labels


def _undecoded(rows: Any, column: str) -> Any:
    import datasets

    return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
