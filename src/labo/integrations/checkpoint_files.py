"""Checkpoints as folders checkpoint-STEP, written atomically, with a file for the state of the regularizer."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from labo.errors import UserError
from labo.regularizers.base import Regularizer

PREFIX = "checkpoint-"
REGULARIZER = "regularizer.safetensors"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first."""
    paths = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(paths, key=lambda path: int(path.name.removeprefix(PREFIX)))


def move_into_place(staged: Path, checkpoint: Path) -> None:
    """Flush a staged checkpoint to the disk and rename its folder, so that a crash leaves no partial checkpoint."""
    for file in staged.iterdir():
        flush_to_disk(file)
    shutil.rmtree(checkpoint, ignore_errors=True)
    os.replace(staged, checkpoint)


def flush_to_disk(file: Path) -> None:
    """Wait until a file is on the disk."""
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())


def write_error(folder: Path, error: BaseException) -> UserError:
    """The error for a checkpoint that could not be written into a folder."""
    if any(text in str(error) for text in ("unexpected pos", "PytorchStreamWriter")):
        reason = "torch could not write its file; perhaps the disk is full"  # torch reports the position, not the cause
    else:
        first_line = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        reason = getattr(error, "strerror", None) or first_line
    return UserError(
        f"Cannot write a checkpoint into '{folder}' ({reason}); the previous checkpoint, if there is one, is complete, "
        "and training can resume from it."
    )


def save_regularizer(regularizer: Regularizer, folder: Path) -> None:
    """Save a regularizer's state in a checkpoint's folder."""
    # Clone, because safetensors rejects tensors that share memory, such as tied weights.
    state = {name: value.clone().contiguous() for name, value in regularizer.state_dict().items()}
    save_file(state, folder / REGULARIZER)


def load_regularizer(regularizer: Regularizer, folder: Path, device: torch.device) -> None:
    """Load the state that `save_regularizer` saved.

    Raises:
        UserError: the file is missing although the regularizer has state, or is of another method or network.
    """
    path = folder / REGULARIZER
    if not path.is_file():
        if regularizer.state_dict():
            raise UserError(f"The checkpoint '{folder}' lacks {REGULARIZER}, the state of the method.")
        return
    try:
        # safetensors does not accept "cpu:0", the device in a multi-process run.
        regularizer.load_state_dict(load_file(path, device="cpu" if device.type == "cpu" else str(device)))
    except RuntimeError as error:  # torch lists all mismatches, in many lines
        raise UserError(
            f"The state in '{path}' does not fit method '{regularizer.name}' and this network: resume with the method "
            "and the network that it was saved with."
        ) from error
