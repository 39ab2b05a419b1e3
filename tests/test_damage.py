"""Finished runs whose files were damaged: one sentence that names the file, and never other numbers without a word."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import trial
from labo import cli, digests
from labo.errors import UserError
from labo.experiment import folds, run_trial, saved_run
from labo.records import comparison
from labo.records import trial as trials
from labo.records.comparison import ComparisonWriter
from test_checkpoints import forget_digests, one_sentence

DEEP = '{"a": ' + "[" * 100_000


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a file of every kind that digits have; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    asked = trial("labo", epochs=1, task_options={"train_size": 100}, curves=True, set={"prior": "memory"})
    run_trial.run(asked, folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(autouse=True)
def _notes_are_told_anew() -> None:
    trials._note_missing_digests.cache_clear()


def evaluated(folder: Path) -> dict[str, float]:
    return saved_run.load(folder).evaluate("test")


def remembered(folder: Path) -> Any:
    return saved_run.load(folder).memory


def zeros(path: Path) -> None:
    """What a crash of the machine leaves of a file that was not yet on the disk."""
    content = bytearray(path.read_bytes())
    content[len(content) // 3 :] = bytes(len(content) - len(content) // 3)
    path.write_bytes(content)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-len(content) // 4] ^= 1
    path.write_bytes(content)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_record_has_a_digest_of_every_file(finished):
    record = json.loads((finished / trials.RECORD).read_text())
    names = {path.name for path in finished.iterdir()} - {trials.RECORD}
    assert names == {trials.RUN, trials.WEIGHTS, trials.MEMORY, trials.FIGURES, trials.CURVE}
    assert record["files"].keys() == names
    for name, entry in record["files"].items():
        assert entry == {"bytes": (finished / name).stat().st_size, "sha256": digests.hash_file(finished / name)}
    assert evaluated(finished) == pytest.approx(record["metrics"])


@pytest.mark.parametrize(
    ("name", "read", "spoil"),
    [
        *((trials.WEIGHTS, evaluated, spoil) for spoil in (zeros, flip, halve, grow, Path.unlink)),
        *((trials.MEMORY, remembered, spoil) for spoil in (zeros, flip, halve, grow)),
        (trials.RUN, evaluated, grow),
        (trials.RUN, evaluated, lambda path: edit(path, lambda content: content.update(seed=1))),  # well-formed
    ],
)
def test_a_damaged_file_is_named_where_it_is_read(run, name, read, spoil):
    spoil(run / name)
    with pytest.raises(UserError) as caught:
        read(run)
    one_sentence(caught.value, f"The files of the run in '{run}' are damaged ({name}: the file ", "train the run anew")


def test_commands_refuse_damaged_weights(run, tmp_path, capsys):
    (tmp_path / "in.csv").write_text(",".join(f"pixel_{number}" for number in range(64)) + "\n" + ",".join("0" * 64))
    for command in (["evaluate"], ["predict"], ["train", "digits", "--method", "distillation", "--teacher"]):
        flip(run / trials.WEIGHTS)  # and back
        arguments = [*command, str(run), *([str(tmp_path / "in.csv")] if command == ["predict"] else [])]
        if command[0] == "train":
            arguments += ["--train-size", "100", "--epochs", "1", "--output", str(tmp_path / "pupil")]
        assert cli.main(arguments) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert "model.safetensors: the file was changed: its SHA-256 is another" in told.err
        flip(run / trials.WEIGHTS)


def test_the_logits_of_a_fold_are_checked(tmp_path):
    run_trial.run(trial("none", epochs=1, fold="1/2"), tmp_path)
    flip(tmp_path / trials.HELD_OUT)
    with pytest.raises(UserError, match=r"held_out\.safetensors: the file was changed"):
        folds.read_logits(tmp_path, 200, 10)


def test_an_old_record_is_read_with_one_note(run, caplog):
    expected = evaluated(run)
    assert caplog.records == []
    forget_digests(run)
    assert evaluated(run) == expected
    remembered(run)
    assert [each.getMessage() for each in caplog.records] == [
        "The records of an earlier version of labo have no digests of their files, so that damage to those goes "
        "unnoticed unless it makes them unreadable."
    ]


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        *((trials.RECORD, "metrics.temperature", value) for value in ([1], "hot", 0, -1.0, float("nan"), True, None)),
        (trials.RECORD, "metrics.nll", "low"),
        (trials.RECORD, "metrics", []),
        (trials.RECORD, "settings", []),
        (trials.RECORD, "failed", 5),
        (trials.RECORD, "decision", {"name": 1}),
        (trials.RECORD, "files", {"model.safetensors": 5}),
        (trials.RUN, "preprocessing.columns", "x"),
        (trials.RUN, "preprocessing.columns", [{"name": 3}]),
        (trials.RUN, "classes", 5),
        (trials.RUN, "classes", [5]),
        (trials.RUN, "settings", []),
        (trials.RUN, "settings.dropout", {}),
        (trials.RUN, "settings.dropout", [1]),
        (trials.RUN, "settings.hidden", "wide"),
        (trials.RUN, "settings.alpha", {}),
        (trials.RUN, "seed", "0"),
        (trials.RUN, "checkpoint", "worst"),
        (trials.RUN, "task_options", []),
    ],
)
def test_an_entry_of_the_wrong_type_is_named(run, name, place, value):
    *parents, key = place.split(".")
    if place != "files":
        forget_digests(run)

    def change(content: dict[str, Any]) -> None:
        for parent in parents:
            content = content[parent]
        content[key] = value

    edit(run / name, change)
    with pytest.raises(UserError) as caught:
        (remembered if key == "alpha" else evaluated)(run)  # only the memory needs the method
    one_sentence(caught.value, key, "" if place.startswith("settings.") else name)


def test_names_of_any_characters_are_read(run):
    forget_digests(run)
    name = "caf\udce9"  # a folder whose name is not UTF-8
    edit(run / trials.RUN, lambda content: content["classes"].__setitem__(3, name))
    assert saved_run.load(run).classes[3] == name


@pytest.mark.parametrize("content", [DEEP, "", "[]", "5", '{"a": "\ud800"}', '{"a": 1'])
@pytest.mark.parametrize("name", [trials.RUN, trials.RECORD])
def test_what_is_no_json_object_is_one_sentence(run, name, content):
    (run / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError) as caught:
        saved_run.load(run)
    one_sentence(caught.value, f"'{run / name}' is damaged: it is not a JSON object")
    with pytest.raises(UserError, match="is damaged"):  # nor is the run begun again without a word
        run_trial.run(trial("none", epochs=1), run)


def line(method: str, seed: int, **others: Any) -> str:
    content = {"task": "digits", "method": method, "seed": seed, "settings": {}, "metrics": {"accuracy": 0.5}}
    return json.dumps({**content, **others}) + "\n"


@pytest.mark.parametrize(
    "damaged",
    [DEEP, "[1]", '{"task": "digits"}', line("labo", 1, metrics=[1]), line("labo", 1, settings=[]),
     line("labo", 1, failed="yes"), line("labo", "1")],  # pyright: ignore[reportArgumentType]
)  # fmt: skip
def test_a_damaged_line_of_a_comparison_does_not_count_and_is_told(tmp_path, caplog, damaged):
    path = tmp_path / comparison.RESULTS
    path.write_text(line("none", 0) + damaged.strip() + "\n" + line("none", 1))
    recorded = comparison.read(tmp_path)
    assert [(record["method"], record["seed"]) for record in recorded.records] == [("none", 0), ("none", 1)]
    (told,) = [each.getMessage() for each in caplog.records]
    assert told.startswith(f"'{path}' is damaged, and the trials of its damaged lines do not count (line 2, it")
    sentences: list[str] = []
    assert len(ComparisonWriter(tmp_path, sentences.append).results) == 2
    assert sentences == [told]


@pytest.mark.parametrize("content", [DEEP, '{"methods": 5}', '{"task_options": []}', '{"candidates": {"labo": 5}}'])
def test_a_damaged_configuration_of_a_comparison_is_one_sentence(tmp_path, content):
    (tmp_path / comparison.RESULTS).write_text(line("none", 0))
    (tmp_path / comparison.COMPARISON).write_text(content)
    with pytest.raises(UserError) as caught:
        comparison.read(tmp_path)
    one_sentence(caught.value, f"'{tmp_path / comparison.COMPARISON}' is damaged: it")


def test_damaged_figures_and_curves_are_left_out_of_a_report_and_told(run, tmp_path, caplog):
    folder = comparison.trial_folder(tmp_path, "digits", "labo", 0)
    folder.parent.mkdir(parents=True)
    shutil.copytree(run, folder)
    recorded = comparison.Recorded(tmp_path, [])
    assert recorded.figures("digits", "labo", 0)
    assert recorded.curve("digits", "labo", 0)
    for name in (trials.FIGURES, trials.CURVE):
        text = (folder / name).read_text()
        digit = next(letter for letter in reversed(text) if letter in "123456")
        place = text.rindex(digit)
        (folder / name).write_text(text[:place] + "7" + text[place + 1 :])
    assert recorded.figures("digits", "labo", 0) is None
    assert recorded.curve("digits", "labo", 0) == []
    told = [each.getMessage() for each in caplog.records]
    assert told == [
        f"'{folder / name}' is left out of the report: the file was changed: its SHA-256 is another."
        for name in (trials.FIGURES, trials.CURVE)
    ]
