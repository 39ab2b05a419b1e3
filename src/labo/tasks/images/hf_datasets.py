"""Image sets of Hugging Face's `datasets` library: on disk, or from its hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from labo.errors import UserError, unknown
from labo.tasks.data_files import hf_fingerprint, load_hf_splits
from labo.tasks.images.dataset import PART_NAMES, ImageSet, Part
from labo.tasks.images.decoding import EncodedImages, NumberedNames
from labo.tasks.labels import class_indices


class ColumnImages(EncodedImages):
    """The images in a column of a data set."""

    def __init__(self, rows: Any, column: str, source: str) -> None:
        self.rows, self.column, self.name = rows, column, NumberedNames(source, "row")

    def __len__(self) -> int:
        return len(self.rows)

    @override
    def entry(self, index: int) -> tuple[str, Path | bytes]:
        value = self.rows[index][self.column] or {}
        name = self.name(index)
        if value.get("bytes") is not None:
            return name, value["bytes"]
        path = Path(value.get("path") or name)
        return str(path), path


def is_dataset(path: Path) -> bool:
    """Whether `datasets` reads this path: a data set that it saved, a .parquet file, or a folder of them."""
    if path.is_file():
        return path.suffix.lower() == ".parquet"
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json")) or bool(_parquet_files(path))


def read(data: str, target: str | None = None) -> ImageSet:
    """The images of a data set: a path on disk, else a name on the hub, which is downloaded.

    The column of images is identified by its type, that of the classes by its name, `target`, or its type.

    Raises:
        UserError: `datasets` cannot read it, or there is no such column.
    """
    splits = {PART_NAMES.get(str(name).lower()): rows for name, rows in _load(data).items()}
    parts = {part: rows for part, rows in splits.items() if part}
    if "train" not in parts:
        raise UserError(f"The data set '{data}' has no part train.")
    features = parts["train"].features
    image, label = _image_column(features, data), _label_column(features, data, target)
    notes, values, images = [], {}, {}
    for name, rows in parts.items():
        labels = _read_labels(rows, label, f"{data}, {name}")
        if name != "train" and labels.dtype.kind == "i" and len(labels) and (labels == -1).all():
            notes.append(f"The {name} part of '{data}' has no labels and is left out.")
            continue
        values[name], images[name] = labels, ColumnImages(_undecoded(rows, image), image, f"{data}, {name}")
    indices, classes = class_indices(values, getattr(features[label], "names", None))
    return ImageSet(classes, {name: Part(images[name], indices[name]) for name in values}, tuple(notes))


def fingerprint(data: str) -> str:
    """Changes when the data set does."""
    return hf_fingerprint(_load(data))


def _load(data: str) -> Mapping[Any, Any]:
    path = Path(data)

    def load(datasets: Any) -> Any:
        if path.is_file():
            return datasets.load_dataset("parquet", data_files={"train": str(path)})
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return datasets.load_from_disk(data)
        if path.is_dir():
            return datasets.load_dataset("parquet", data_files=_files_by_part(_parquet_files(path)))
        return datasets.load_dataset(data)

    return load_hf_splits(data, load)


def _parquet_files(folder: Path) -> list[Path]:
    """The .parquet files in a folder, else in its one subfolder that has some, as in the hub's repositories.

    Raises:
        UserError: several subfolders have some: each is a data set.
    """
    files = sorted(folder.glob("*.parquet"))
    if files:
        return files
    files = sorted(folder.glob("*/*.parquet"))
    folders = sorted({path.parent.name for path in files})
    if len(folders) > 1:
        raise UserError(f"'{folder}' holds data sets in its folders {', '.join(folders)}: name one of them.")
    return files


def _files_by_part(files: list[Path]) -> dict[str, list[str]]:
    """Files by the part that their names begin with, as in test-00000-of-00001.parquet; others are for training."""
    parts: dict[str, list[str]] = {}
    for file in files:
        prefix = file.name.lower().replace("_", "-").replace(".", "-").partition("-")[0]
        parts.setdefault(PART_NAMES.get(prefix, "train"), []).append(str(file))
    return parts


def _image_column(features: Mapping[str, Any], data: str) -> str:
    columns = [name for name, feature in features.items() if _is_image(feature)]
    if len(columns) != 1:
        got = f"the columns {', '.join(columns)}" if columns else f"none among {', '.join(features)}"
        raise UserError(f"Expected '{data}' to have one column of images, but got {got}.")
    return columns[0]


def _is_image(feature: Any) -> bool:
    if type(feature).__name__ == "Image" or getattr(feature, "dtype", "") in ("binary", "large_binary"):
        return True
    return isinstance(feature, Mapping) and feature.keys() == {"bytes", "path"}


def _label_column(features: Mapping[str, Any], data: str, target: str | None) -> str:
    if target is not None:
        if target not in features:
            raise unknown("column", target, features)
        return target
    columns = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    columns = columns or [name for name in ("label", "labels", "target", "class") if name in features]
    if len(columns) != 1:
        raise UserError(
            f"Which column of '{data}' holds the classes? Name one by --target: {', '.join(columns or features)}."
        )
    return columns[0]


def _read_labels(rows: Any, column: str, source: str) -> np.ndarray:
    values = list(rows[column])
    missing = next((index for index, value in enumerate(values) if value is None), None)
    if missing is not None:
        raise UserError(f"Row {missing + 1} of '{source}' has no '{column}'.")
    labels = np.array(values)
    if labels.ndim != 1 or labels.dtype.kind not in "iuUb":
        raise UserError(f"Expected the column '{column}' of '{source}' to hold integers or strings.")
    return labels.astype(np.int64) if labels.dtype.kind in "iub" else labels


def _undecoded(rows: Any, column: str) -> Any:
    import datasets

    return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
