"""What translators are trained with unless told: the model decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import MarianConfig

from labo.cli import main
from labo.experiment.compare import ComparisonConfig, Plan
from labo.tasks import create


@pytest.mark.parametrize(
    ("task", "model", "learning_rate", "dropout"),
    [
        ("multi30k-de-en", None, 4e-3, 0.1),
        ("multi30k-de-en", "tiny", 4e-3, 0.1),
        ("multi30k-de-en", "transformer_iwslt_de_en", 5e-4, 0.3),
        ("wmt14-en-de", "transformer_base", 5e-4, 0.1),
        ("iwslt14-de-en", "hf/bart", 5e-4, 0.1),
        ("numbers", None, 1e-3, 0.1),
        ("numbers", "transformer_base", 5e-4, 0.1),
        ("numbers", 5, 5e-4, 0.1),
    ],
)
def test_the_model_decides_how_it_is_trained(task: str, model: Any, learning_rate: float, dropout: float):
    made = create(task)
    usual, tried = made.default_settings(model), made.optimizer_candidates(model)
    assert (usual["learning_rate"], usual["dropout"]) == (learning_rate, dropout)
    assert {each.get("learning_rate", learning_rate) / learning_rate for each in tried} == {0.5, 1, 2}
    assert all({**usual, **each} != usual for each in tried[1:])


@pytest.mark.slow
def test_a_comparison_and_a_run_take_the_defaults_of_their_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    asked = ComparisonConfig(["none", "labo"], tmp_path / "all", "numbers", set={"model": "transformer_iwslt_de_en"})
    candidates = Plan(asked).as_json()["candidates"]
    tried = [(each["learning_rate"], each["dropout"]) for each in candidates["none"]]
    assert tried == [(5e-4, 0.3), (1e-3, 0.3), (5e-4, 0.1)]
    assert {(each["learning_rate"], each["dropout"]) for each in candidates["labo"]} == {(5e-4, 0.3)}
    MarianConfig(d_model=16, encoder_layers=1, decoder_layers=1).save_pretrained(tmp_path)
    given = ["--model", f"hf/{tmp_path}/config.json", "--steps", "1", "--output", str(tmp_path / "run")]
    assert main(["train", "numbers", *given, "--set", "beam=1"]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["learning_rate"] == 5e-4
    capsys.readouterr()
