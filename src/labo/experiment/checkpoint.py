"""What a run keeps on the disk so that it can go on: weights, the best epoch, the newest whole checkpoint."""

from __future__ import annotations

import json
import logging
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from labo.errors import UserError
from labo.integrations.saving import checkpoints
from labo.records.trial import WEIGHTS

_log = logging.getLogger(__name__)


def save_weights(model: nn.Module, path: Path, **metadata: Any) -> None:
    """Weights as safetensors, written beside and renamed into place."""
    save_tensors(model.state_dict(), path, **metadata)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, **metadata: Any) -> None:
    """Named tensors as `save_weights` writes them."""
    beside = path.with_name(f".{path.name}")
    whole: dict[str, Tensor] = {}
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        shared = any(value.data_ptr() == other.data_ptr() for other in whole.values())
        whole[name] = value.clone() if shared else value  # tied weights: the file format takes no memory twice
    try:
        save_file(whole, beside, metadata={name: json.dumps(value) for name, value in metadata.items()})
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)  # what a full disk leaves


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


def newest_whole(folder: Path, *, processes: int = 1) -> Path | None:
    """The newest checkpoint that is whole; None where there is none at all. Of newer ones that are not, a log tells.

    Args:
        folder: where the checkpoints lie.
        processes: how many train together here.

    Raises:
        UserError: there are checkpoints and none is whole, or the newest whole one is of another number of processes.
    """
    damaged: list[str] = []
    for path in reversed(checkpoints(folder)):
        found = _damage(path)
        if found is None:
            for sentence in damaged:
                _log.warning("%s; the run goes on from '%s'.", sentence, path.name)
            _refuse_other_processes(path, processes)
            return path
        damaged.append(f"The checkpoint '{path}' is damaged ({found})")
    if damaged:
        raise UserError(f"{damaged[0]}; delete it to start the run again.")
    return None


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files; None where nothing is."""
    file = path / WEIGHTS
    try:
        if not file.is_file():
            raise FileNotFoundError("it is missing")
        for file in sorted(path.iterdir()):
            if file.suffix == ".safetensors":
                load_file(file)
            elif file.suffix in (".pt", ".pth"):
                with zipfile.ZipFile(file) as parts:
                    if parts.testzip() is not None:
                        raise ValueError("a part of it fails its checksum")
            elif file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        return f"{file.name}: {_first_line(error)}"
    return None


def _refuse_other_processes(path: Path, processes: int) -> None:
    """Each process keeps its random state: with another number of them the run would not be the same."""
    there = len(list(path.glob("rng_state_*.pth"))) or 1
    if there != processes:
        command = f"torchrun --nproc-per-node {there} -m labo" if there > 1 else "labo, without torchrun"
        raise UserError(
            f"The checkpoint '{path}' was written by {there} process{'es' * (there > 1)}, but {processes} would go on "
            f"from it: go on with {command}."
        )


def check_fits(model: Any, checkpoint: Path) -> None:
    """Refuse the weights of another network.

    Raises:
        UserError: the weights in `checkpoint` have other names or shapes than those of `model`.
    """
    with safe_open(checkpoint / WEIGHTS, "pt") as file:
        names: Any = file.keys()
        there = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    state = model.state_dict()
    # Transformers' networks save neither the other names of tied weights nor tables that are always the same.
    tied = {value.data_ptr() for name, value in state.items() if name in there}
    left_out = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    here = {
        name: tuple(value.shape)
        for name, value in state.items()
        if name in there or not (name in left_out or value.data_ptr() in tied)
    }
    for name in dict.fromkeys([*here, *there]):
        if there.get(name) != here.get(name):
            known = [f"has no `{name}`" if shape is None else f"has `{name}` of shape {shape}"
                     for shape in (there.get(name), here.get(name))]  # fmt: skip
            raise UserError(
                f"The checkpoint '{checkpoint}' is of another network: it {known[0]}, the one here {known[1]}."
            )


def step_of(checkpoint: Path | None) -> int:
    """The step that a checkpoint was written at; 0 without one."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
