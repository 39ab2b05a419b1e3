"""Files of an unfinished run: weights, the best epoch so far, and checkpoints that training goes on from."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from labo import digests, distributed
from labo.errors import UserError
from labo.integrations import checkpoint_files
from labo.integrations.checkpoint_files import PREFIX, checkpoints
from labo.records.storage import read_object
from labo.records.trial import CURVE, WEIGHTS
from labo.regularizers.base import Regularizer

# The files of a checkpoint, beside the weights and that of the regularizer.
AVERAGE, OPTIMIZER, RANDOM, STATE = "average.safetensors", "optimizer.pt", "random.pt", "state.json"
# Sizes and digests of these files, and of the learning curve so far; it is written last.
MANIFEST = "files.json"
# An entry of the state: this version writes a manifest.
_HAS_MANIFEST = "manifest"
# In the metadata of an epoch's weights.
_FACTS, _DIGEST = "facts", "sha256"
# What Transformers' Trainer writes, which trained the runs of earlier versions.
_TRAINER_STATE = "trainer_state.json"
_log = logging.getLogger(__name__)


class OutdatedCheckpointError(UserError):
    """A checkpoint of an earlier version, whose training loop was another, or that cannot be checked for damage."""


def save_weights(model: nn.Module, path: Path) -> None:
    """Save weights as safetensors, written to a temporary file and renamed."""
    save_tensors(model.state_dict(), path)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Save named tensors as `save_weights` does."""
    _save(_separate(tensors), path, {})


def save_epoch(model: nn.Module, path: Path, **facts: Any) -> None:
    """Save the weights of an epoch of an unfinished run and JSON-able facts on them, with a digest of both."""
    weights = _separate(model.state_dict())
    text = json.dumps(facts)
    _save(weights, path, {_FACTS: text, _DIGEST: _digest(weights, text)})


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    temporary = path.with_name(f".{path.name}")
    try:
        save_file(tensors, temporary, metadata=metadata)
        checkpoint_files.flush_to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # left by a full disk


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each with memory of its own: the file format takes tied weights not twice."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        separate[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(separate[name].data_ptr())
    return separate


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights that `save_weights` saved.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"No weights at '{path}': the run is not finished.") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"The weights '{path}' are damaged: {_first_line(error)}.") from error


def read_epoch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights, facts) that `save_epoch` saved.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        weights = load_file(path)
        if metadata.get(_DIGEST) != _digest(weights, metadata.get(_FACTS, "")):
            raise ValueError("the digest of its weights is another")
        return weights, json.loads(metadata[_FACTS])
    except (SafetensorError, OSError, ValueError) as error:
        wrong = "the file is missing" if isinstance(error, FileNotFoundError) else _first_line(error)
        raise UserError(
            f"The weights '{path}' of an unfinished run are damaged ({wrong}): delete the folder '{path.parent}' to "
            "start the run again."
        ) from error


def _digest(weights: Mapping[str, Tensor], facts: str) -> str:
    result = hashlib.sha256(facts.encode())
    for name, value in sorted(weights.items()):
        result.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        result.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def write(
    folder: Path,
    state: Mapping[str, Any],
    *,
    model: nn.Module,
    average: nn.Module | None,
    regularizer: Regularizer,
    optimizer: Mapping[str, Any],
    random_states: list[dict[str, Any]],
) -> None:
    """Write the checkpoint of a step, which replaces the one before it.

    It is staged beside its place and renamed into it, so that a checkpoint is complete or absent. Its last file names
    the others with their sizes and digests, and the learning curve in the folder above, which grows later.

    Args:
        folder: of the checkpoints.
        state: JSON-able; `state["step"]` is the number of steps taken.
        model, average, regularizer: whose states are saved.
        optimizer: states of the optimizer and the schedule.
        random_states: of each process, see `random_state`.

    Raises:
        UserError: it could not be written; the checkpoint before it is still there.
    """
    staged = folder / ".saving"
    try:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        save_tensors(model.state_dict(), staged / WEIGHTS)
        if average is not None:
            save_tensors(average.state_dict(), staged / AVERAGE)
        checkpoint_files.save_regularizer(regularizer, staged)
        torch.save(dict(optimizer), staged / OPTIMIZER)
        torch.save(random_states, staged / RANDOM)
        state = {**state, "processes": len(random_states), _HAS_MANIFEST: True}
        (staged / STATE).write_text(json.dumps(state), encoding="utf-8")
        curve = folder.parent / CURVE
        files = digests.manifest([*sorted(staged.iterdir()), *([curve] if curve.is_file() else ())])
        (staged / MANIFEST).write_text(json.dumps(files), encoding="utf-8")
        checkpoint_files.move_into_place(staged, folder / f"{PREFIX}{state['step']}")
    except (OSError, SafetensorError, RuntimeError) as error:  # each writer raises its own error on a full disk
        shutil.rmtree(staged, ignore_errors=True)
        raise checkpoint_files.write_error(folder, error) from error
    _remove_others(folder, keep=f"{PREFIX}{state['step']}")


def _remove_others(folder: Path, keep: str) -> None:
    removed = folder / ".removing"
    shutil.rmtree(removed, ignore_errors=True)  # left by a kill
    for path in checkpoints(folder):
        if path.name != keep:
            path.replace(removed)  # so that no half of it looks like a checkpoint
            shutil.rmtree(removed, ignore_errors=True)


def newest_complete(folder: Path, *, processes: int = 1) -> Path | None:
    """The newest checkpoint that is complete, None where there is none; a warning is logged for damaged newer ones.

    Args:
        folder: of the checkpoints.
        processes: how many train together now.

    Raises:
        UserError: all checkpoints are damaged, or the newest complete one is of another number of processes.
        OutdatedCheckpointError: it is of an earlier version.
    """
    damaged: list[str] = []
    for path in reversed(checkpoints(folder)):
        if (reason := _outdated_reason(path)) is not None:
            raise OutdatedCheckpointError(
                f"The checkpoint '{path}' is of an earlier version of labo, {reason}: delete it to start the run again."
            )
        damage = _damage(path)
        if damage is None:
            for sentence in damaged:
                _log.warning("%s; the run goes on from '%s'.", sentence, path.name)
            _refuse_other_processes(path, processes)
            return path
        damaged.append(f"The checkpoint '{path}' is damaged ({damage})")
    if damaged:
        raise UserError(f"{damaged[0]}; delete it to start the run again.")
    return None


def remove_outdated(folder: Path) -> bool:
    """Remove the checkpoints in `folder` if some are of an earlier version; returns whether they were."""
    outdated = any(_outdated_reason(path) is not None for path in checkpoints(folder))
    if outdated:
        shutil.rmtree(folder)
    return outdated


def _outdated_reason(checkpoint: Path) -> str | None:
    """Why a checkpoint of an earlier version is not gone on from; None for one of this version, damaged or not."""
    if (checkpoint / _TRAINER_STATE).is_file():
        return "with another training loop"
    state = read_object(checkpoint / STATE)
    if not (checkpoint / MANIFEST).exists() and state and "processes" in state and _HAS_MANIFEST not in state:
        return "without digests of its files"
    return None


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files; None where all agree with its manifest."""
    files = read_object(path / MANIFEST) or {}
    lacking = {WEIGHTS, OPTIMIZER, RANDOM, STATE} - files.keys()
    if lacking or not all(isinstance(entry, dict) and entry.keys() == {"bytes", "sha256"} for entry in files.values()):
        return f"{MANIFEST}: the file is missing or was changed"
    for file in path.iterdir():
        if file.name not in files and file.name != MANIFEST and not file.name.startswith("."):
            return f"{file.name}: the file is not one of the checkpoint"
    for name, entry in files.items():
        of_run = name == CURVE
        wrong = digests.difference((path.parent.parent if of_run else path) / name, entry, prefix=of_run)
        if wrong is not None:
            return f"{name}: {wrong}"
    return None


def _refuse_other_processes(path: Path, processes: int) -> None:
    """Each process has a random state: with another number of them the run would not be the same."""
    before = read_state(path)["processes"]
    if before != processes:
        command = f"torchrun --nproc-per-node {before} -m labo" if before > 1 else "labo, without torchrun"
        raise UserError(
            f"The checkpoint '{path}' was written by {before} process{'es' * (before > 1)}, but {processes} would go "
            f"on from it: go on with {command}."
        )


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON state of a checkpoint."""
    return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load a checkpoint's weights into the network.

    Raises:
        UserError: they are of another network.
    """
    weights = load_file(checkpoint / WEIGHTS)
    saved, own = ({name: tuple(value.shape) for name, value in w.items()} for w in (weights, model.state_dict()))
    for name in dict.fromkeys([*own, *saved]):
        if saved.get(name) != own.get(name):
            there, here = (
                f"has no `{name}`" if shape is None else f"has `{name}` of shape {shape}"
                for shape in (saved.get(name), own.get(name))
            )
            raise UserError(f"The checkpoint '{checkpoint}' is of another network: it {there}, the one here {here}.")
    model.load_state_dict(weights)


def load_average(average: nn.Module, checkpoint: Path) -> None:
    """Load a checkpoint's average of the weights.

    Raises:
        UserError: the checkpoint has none.
    """
    if not (checkpoint / AVERAGE).is_file():
        raise UserError(f"The checkpoint '{checkpoint}' lacks {AVERAGE}: the average of the weights.")
    average.load_state_dict(load_file(checkpoint / AVERAGE))


def load_optimizer(checkpoint: Path) -> dict[str, Any]:
    """The states of the optimizer and the schedule in a checkpoint."""
    return torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every global random generator that a step of training may draw from."""
    kind, keys, *rest = np.random.get_state()
    keys = np.asarray(keys).tolist()  # arrays are not among what torch loads without pickle's risks
    state = {"python": random.getstate(), "numpy": (kind, keys, *rest), "cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def load_random_state(checkpoint: Path, device: torch.device) -> None:
    """Restore this process's `random_state`."""
    state = torch.load(checkpoint / RANDOM, map_location="cpu", weights_only=True)[distributed.rank()]
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"])


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
