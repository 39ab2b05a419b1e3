"""What a run keeps on the disk so that it can go on: weights, the best epoch, the newest whole checkpoint."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from labo.errors import UserError
from labo.integrations.transformers import checkpoints

CHECKPOINTS, BEST = "checkpoints", "best.safetensors"


def save_weights(model: nn.Module, path: Path, **metadata: Any) -> None:
    """Weights as safetensors, written beside and renamed into place."""
    save_tensors(model.state_dict(), path, **metadata)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, **metadata: Any) -> None:
    """Named tensors as `save_weights` writes them."""
    beside = path.with_name(f".{path.name}")
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(whole, beside, metadata={name: json.dumps(value) for name, value in metadata.items()})
    beside.replace(path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights that `save_weights` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"No weights at '{path}': the run is not finished.") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"The weights '{path}' are damaged: {_first_line(error)}.") from error


def read_best(path: Path) -> tuple[float, int]:
    """(value, step) of the best epoch so far."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        return math.inf, 0
    except (SafetensorError, OSError) as error:
        raise UserError(f"The weights '{path}' are damaged: {_first_line(error)}.") from error
    return json.loads(metadata["value"]), json.loads(metadata["step"])


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint, found whole; None where there is none."""
    found = checkpoints(folder)
    if not found:
        return None
    newest = found[-1]
    try:
        for file in newest.iterdir():
            if file.suffix == ".safetensors":
                load_file(file)
            elif file.suffix in (".pt", ".pth"):
                with zipfile.ZipFile(file) as parts:
                    if parts.testzip() is not None:
                        raise ValueError("a part of it fails its checksum")
            elif file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise UserError(
            f"The checkpoint '{newest}' is damaged ({file.name}: {_first_line(error)}); delete it to start the run "
            "again."
        ) from error
    return newest


def step_of(checkpoint: Path | None) -> int:
    """The step that a checkpoint was written at; 0 without one."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
