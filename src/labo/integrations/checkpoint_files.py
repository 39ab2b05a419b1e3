"""Checkpoints as folders checkpoint-STEP, each complete or absent, and the file of a regularizer's state in them."""

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
    """Flush the files of a staged checkpoint to the disk and rename its folder: a crash leaves no part of it."""
    for file in staged.iterdir():
        flush_to_disk(file)
    shutil.rmtree(checkpoint, ignore_errors=True)
    os.replace(staged, checkpoint)


def flush_to_disk(file: Path) -> None:
    """Return when a file is on the disk."""
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())


def write_error(folder: Path, error: BaseException) -> UserError:
    """The error for a checkpoint that could not be written into a folder."""
    if any(text in str(error) for text in ("unexpected pos", "PytorchStreamWriter")):
        reason = "torch's file ended too early: perhaps the disk is full"  # torch reports the position, not the cause
    else:
        first_line = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        reason = getattr(error, "strerror", None) or first_line
    return UserError(
        f"A checkpoint could not be written into '{folder}' ({reason}): the one before it, if there is one, is whole, "
        "and training can go on from it."
    )


def save_regularizer(regularizer: Regularizer, folder: Path) -> None:
    """Save a regularizer's state in a checkpoint's folder."""
    # Copies: the file format takes no two names of one memory, as the tied weights of a copied network are.
    state = {name: value.clone().contiguous() for name, value in regularizer.state_dict().items()}
    save_file(state, folder / REGULARIZER)


def load_regularizer(regularizer: Regularizer, folder: Path, device: torch.device) -> None:
    """Load what `save_regularizer` saved.

    Raises:
        UserError: the file is missing though the regularizer has a state, or it is of another method or network.
    """
    path = folder / REGULARIZER
    if not path.is_file():
        if regularizer.state_dict():
            raise UserError(f"The checkpoint '{folder}' lacks {REGULARIZER}: what the method remembers.")
        return
    try:
        # safetensors knows no "cpu:0", the device of a process among several.
        regularizer.load_state_dict(load_file(path, device="cpu" if device.type == "cpu" else str(device)))
    except RuntimeError as error:  # torch lists what does not fit, in many lines
        raise UserError(
            f"What '{path}' holds is not what method '{regularizer.name}' remembers of this network: resume with the "
            "method and the network that it was saved with."
        ) from error
