"""Processes that train together, as torchrun starts them, and what they do in the tests."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments import trial
from labo import cli, distributed, regularizers
from labo.errors import UserError
from labo.experiment import run_trial
from labo.records import trial as trials
from labo.training import sharding

SECONDS = 120.0
COUNT = 2
# 37 examples in batches of 16 leave 5 for the last one: an odd number, smaller than the others.
PLAIN: dict[str, Any] = {"batch_size": 16, "optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.05}
EXAMPLES = 37
# Twenty steps: three an epoch.
TWENTY: dict[str, dict[str, Any]] = {
    "sgd": {"epochs": 20 / 3},
    "adamw": {"epochs": 20 / 3, "optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1, "accumulation": 2},
}


def plain_trial(method: str, *, augmented: str = "", **options: Any) -> trials.Trial:
    """Three epochs on few digits with SGD; nothing is drawn but the order. With `augmented`, pictures from there."""
    more = {**PLAIN, **options.pop("set", {})}
    if augmented:
        data = {"data": augmented, "validation_size": 9}
        return trial(method, task="image", epochs=3, task_options=data, set={**more, "width": 4}, **options)
    made = trial(method, epochs=3, task_options={"train_size": EXAMPLES}, **options)
    return trials.Trial(**{**vars(made), "settings": {**made.settings, **more}})


class Stopping(regularizers.SoftLabelRegularizer):
    """Label smoothing that ends the run at a step in the processes that LABO_TEST_STOP lists."""

    name = "stopping"
    summary = "stops"

    def __init__(self, *, strength: float = 0.1) -> None:
        super().__init__(strength=strength)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("step",)

    def labels(self, rows: Any) -> torch.Tensor:
        stops = os.environ.get("LABO_TEST_STOP", "").split()
        if os.environ.get("RANK", "0") in stops and self.training and rows.given["step"] == 5:
            raise UserError("Stopped at step 5.")
        return torch.full_like(rows.logits, 1 / rows.logits.shape[1])


def together(work: Callable[..., Any], folder: Path, *given: Any) -> list[Any]:
    """What `work(folder, *given)` returned, or the text of what it raised, in each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")  # imports torch once, not once a process
    context.set_forkserver_preload(["labo.training.loop", "labo.cli.app", "sklearn.datasets"])
    processes = [context.Process(target=_begin, args=(work, rank, port, folder, given)) for rank in range(COUNT)]
    end = time.monotonic() + SECONDS
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(COUNT)]


def _begin(work: Callable[..., Any], rank: int, port: int, folder: Path, given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": COUNT, "LOCAL_WORLD_SIZE": COUNT}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    os.environ.update({name: str(value) for name, value in told.items()})
    try:
        found = work(folder, *given)
    except BaseException:
        found = traceback.format_exc()
    torch.save(found, folder / f"found-{rank}.pt")


def train_several(folder: Path, pictures: str) -> dict[str, Any]:
    """Runs of two processes: their records, by the folders that they lie in."""
    found: dict[str, Any] = {}
    with distributed.process_group():
        for method in ("labo", "ls_plus", "cs_kd"):
            found[method] = run_trial.run(plain_trial(method), folder / method)
        found["parts"] = run_trial.run(plain_trial("labo", set={"accumulation": 2}), folder / "parts")
        for name, given in TWENTY.items():
            for fsdp in (False, True):
                at = f"{name}{' fsdp' * fsdp}"
                found[at] = run_trial.run(plain_trial("labo", set=given, fsdp=fsdp), folder / at)
        found["elements"] = split_elements()
        diverging = plain_trial("none", set={"learning_rate": 1e30})
        found["diverging"] = run_trial.run(diverging, folder / "diverging")
        options = {"augmented": pictures, "set": {"ema": 0.9, "dropout": 0.2, "accumulation": 2, "batch_size": 12}}
        split: dict[str, Any] = {"fsdp": True, "set": {**TWENTY["adamw"], "epochs": 3}}
        for kind, given in (("", {"checkpoint": "best", **options}), ("fsdp ", split)):
            for name in (f"{kind}whole", f"{kind}cut"):
                os.environ["LABO_TEST_STOP"] = "0 1" if "cut" in name else ""
                seconds = 0.0 if "cut" in name else 60.0
                asked = plain_trial("processes:Stopping", save_seconds=seconds, **given)
                with contextlib.suppress(UserError):
                    found[name] = run_trial.run(asked, folder / name)
            found[f"{kind}left"] = sorted(path.name for path in (folder / f"{kind}cut" / "checkpoints").iterdir())
            os.environ["LABO_TEST_STOP"] = ""
            found[f"{kind}cut"] = run_trial.run(asked, folder / f"{kind}cut")
        for name, settings in (("cs_kd", {}), ("labo", {"ema": 0.9})):
            try:
                run_trial.run(plain_trial(name, fsdp=True, set=settings), folder / f"refused {name}")
            except UserError as error:
                found[f"refused {name}"] = str(error)
    return found


def split_elements() -> list[int]:
    """The elements of each parameter that this process holds of a network with 6 x 4 weights in a block."""
    network = nn.Sequential(nn.ModuleList([nn.Linear(4, 6, bias=False)]), nn.Linear(6, 2))
    parameters: Any = sharding.shard(network).parameters()
    return [parameter.to_local().numel() for parameter in parameters]


def run_command(folder: Path, environment: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    """The command line in each process: (status, stdout, stderr)."""
    os.environ.update(environment)
    cli._REPORT_SECONDS = 0.0  # no launcher ends these processes early
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(list(arguments))
    return status, out.getvalue(), err.getvalue()
