"""Trials of translators on a few number names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from experiments import trial
from labo import tasks
from labo.experiment import run_trial
from labo.records import trial as trials
from labo.tasks.translation import numbers

PAIRS = 48
SMALL: dict[str, Any] = {"tokens": 60, "learning_rate": 0.01, "beam": 2}


def two_files(folder: Path) -> dict[str, str]:
    """Number names in two files, as a task takes them."""
    pairs = numbers.draw(0, PAIRS, "de", "en")["train"]
    (folder / "a.de").write_text("\n".join(pairs.source) + "\n", encoding="utf-8")
    (folder / "a.en").write_text("\n".join(pairs.target) + "\n", encoding="utf-8")
    return {"source": str(folder / "a.de"), "target": str(folder / "a.en")}


def text_trial(files: dict[str, Any], method: str = "labo", **options: Any) -> trials.Trial:
    given = {**SMALL, **options.pop("set", {})}
    data = tasks.create("translation", **files).fingerprint()
    return trial(method, task="translation", task_options=dict(files), set=given, epochs=2, data=data, **options)


def trained_in(folder: Path, files: dict[str, str]) -> Path:
    """A finished run of LABO, with its curve."""
    run_trial.run(text_trial(files, curves=True), folder / "labo")
    return folder / "labo"


def close(mine: Path, theirs: Path, tolerance: float = 1e-6) -> None:
    first, second = (load_file(folder / trials.WEIGHTS) for folder in (mine, theirs))
    for name, value in second.items():
        torch.testing.assert_close(first[name], value, atol=tolerance, rtol=0)


def curve(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
