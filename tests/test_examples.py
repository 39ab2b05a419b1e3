"""The examples run, and those of wrong labels show what they are there for."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
FAST = ("plain_pytorch", "lightning_memory", "accelerate_loop", "calibration", "tagging", "segmentation")
# Where a memory learns past wrong labels: the line that has to be better, and those that have to be worse.
LEARNS = {
    "plain_pytorch": ('labo.LABOLoss(prior="memory")', ["nn.CrossEntropyLoss()", "labo.LABOLoss()"]),
    "lightning_memory": ('labo.LABOLoss(prior="memory")', ["labo.LABOLoss()"]),
    "tagging": ('labo.LABOLoss(prior="memory")', ["labo.LABOLoss()"]),
    "sklearn_table": (
        'LABOClassifier(prior="memory")',
        ["HistGradientBoostingClassifier()", "MLPClassifier((256, 256))", 'LABOClassifier(method="none")'],
    ),
}


def marked(path: Path) -> object:
    return pytest.param(path, id=path.stem, marks=() if path.stem in FAST else pytest.mark.slow)


@pytest.mark.filterwarnings("default")  # those of other libraries
@pytest.mark.parametrize("path", [marked(path) for path in EXAMPLES])
def test_an_example_runs(path: Path, capsys: pytest.CaptureFixture[str]):
    try:
        runpy.run_path(str(path), run_name="__main__")
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "labo":
            raise
        pytest.skip(f"needs {error.name}")
    printed = capsys.readouterr().out
    assert printed.strip()
    accuracy = {name: float(value) for name, value in re.findall(r"^(\S.*?) +([\d.]+)%$", printed, re.MULTILINE)}
    if path.stem in LEARNS:
        better, worse = LEARNS[path.stem]
        assert all(accuracy[better] > accuracy[name] + 1 for name in worse)
    if path.stem in ("accelerate_loop", "segmentation"):
        assert min(accuracy.values()) > 90


def test_the_fast_ones_exist():
    assert {*FAST, *LEARNS} <= {path.stem for path in EXAMPLES}
