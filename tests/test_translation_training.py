"""Translators through a whole trial."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from experiments import forget_digests
from labo import cli, distributed, tasks
from labo.errors import NonFiniteLogitsError, UserError
from labo.experiment import run_trial, saved_run
from labo.experiment import settings as flat
from labo.experiment.evaluators import translation as judged
from labo.experiment.evaluators.translation import TranslationEvaluator, batches_by_length
from labo.metrics.translation import bleu, chrf
from labo.records import trial as trials
from labo.tasks.translation import models
from labo.tasks.translation.text_files import Pairs
from labo.training import checkpoints, loop, weight_averaging
from processes import COUNT, together
from translators import SMALL, close, curve, text_trial, trained_in, two_files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return two_files(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, files: dict[str, str]) -> Path:
    return trained_in(tmp_path_factory.mktemp("run"), files)


def test_a_record_has_scores_signatures_and_translations(trained):
    record = json.loads((trained / trials.RECORD).read_text())
    metrics = record["metrics"]
    assert set(metrics) == {"bleu", "chrf", "nll", "perplexity", "ece", "nll_scaled", "ece_scaled", "temperature"}
    assert record["signatures"]["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
    assert "chrF" in record["signatures"]["chrf"] or "nrefs:1" in record["signatures"]["chrf"]
    assert metrics["nll_scaled"] < metrics["nll"] + 0.05
    run = saved_run.load(trained)
    kept = trials.read_translations(trained)
    assert kept is not None
    assert len(kept[0]) == len(run.splits.test)
    assert kept[1] == list(run.splits.test.target_text)
    assert bleu(*kept)[0] == pytest.approx(metrics["bleu"])
    assert (trained / "sentencepiece.model").read_bytes() == run.splits.files["sentencepiece.model"]
    assert run.evaluate("test") == pytest.approx(metrics)
    lines = curve(trained)
    assert {"loss", "nll", "perplexity", "validation_nll", "validation_perplexity", "validation_bleu"} <= set(lines[-1])
    shown = json.loads((trained / "figures.json").read_text(encoding="utf-8"))["sentences"]
    assert shown
    places = shown[0]["places"]
    assert places[-1]["reference"] == "</s>"
    assert all(sum(mass for _, mass in place["top"]) <= 1 + 1e-4 for place in places)


@pytest.mark.parametrize("method", ["labo", "confidence_penalty", "unigram_smoothing", "labo[prior=memory]"])
def test_a_stopped_run_goes_on_exactly(tmp_path, files, method):
    class StoppedError(Exception):
        pass

    def stop(share: float) -> None:
        if share >= 0.4:
            raise StoppedError

    asked = text_trial(files, method)
    whole = run_trial.run(asked, tmp_path / "whole")
    with pytest.raises(StoppedError):
        run_trial.run(trials.Trial(**{**vars(asked), "save_seconds": 0.0}), tmp_path / "cut", stop)
    resumed = run_trial.run(asked, tmp_path / "cut")
    assert resumed["metrics"] == whole["metrics"]
    mine, theirs = (load_file(tmp_path / name / trials.WEIGHTS) for name in ("cut", "whole"))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert (tmp_path / "cut" / "curve.jsonl").read_text() == (tmp_path / "whole" / "curve.jsonl").read_text()


def plain(files: dict[str, str], **settings: Any) -> trials.Trial:
    """Nothing is drawn but the order."""
    return text_trial(files, set={"dropout": 0.0, "optimizer": "sgd", "tokens": 120, **settings})


def test_the_linear_form_trains_as_the_logits_do(tmp_path, files, monkeypatch):
    seen = []
    form = loop.has_linear_form
    monkeypatch.setattr(loop, "has_linear_form", lambda *args: seen.append(form(*args)) or seen[-1])
    run_trial.run(plain(files), tmp_path / "linear")
    run_trial.run(text_trial(files, "confidence_penalty"), tmp_path / "penalty")
    assert seen == [True, False]
    monkeypatch.setattr(loop, "has_linear_form", lambda *args: False)
    run_trial.run(plain(files), tmp_path / "logits")
    close(tmp_path / "linear", tmp_path / "logits", 1e-5)


def test_parts_of_a_batch_give_the_gradients_of_the_whole(tmp_path, files):
    """One step each, so that the weights differ by their gradients alone; every part has other numbers of tokens."""
    for parts in (1, 3):
        asked = plain(files, accumulation=parts, tokens=400, steps=1)
        run_trial.run(asked, tmp_path / str(parts))
    close(tmp_path / "3", tmp_path / "1")


def test_half_precision_trains_too(tmp_path, files):
    record = run_trial.run(plain(files, precision="bfloat16"), tmp_path / "half")
    run_trial.run(plain(files), tmp_path / "whole")
    assert record["metrics"]["nll"] < 7
    first, second = (load_file(tmp_path / name / trials.WEIGHTS) for name in ("half", "whole"))
    assert {value.dtype for value in first.values()} == {torch.float32}
    apart = max((first[name] - second[name]).abs().max().item() for name in first)
    assert 0 < apart < 0.05


def train_both(folder: Path, files: dict[str, str]) -> dict[str, Any]:
    with distributed.process_group():
        return {
            name: run_trial.run(replace(plain(files), fsdp=name == "fsdp"), folder / name) for name in ("ddp", "fsdp")
        }


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path, files):
    """Also where the weights are split over them, the output embedding's among them."""
    found = together(train_both, tmp_path, files)
    assert len(found) == COUNT
    alone = run_trial.run(plain(files), tmp_path / "alone")
    for name in ("ddp", "fsdp"):
        for each in found:
            assert isinstance(each, dict), each
            assert each[name]["metrics"]["nll"] == pytest.approx(alone["metrics"]["nll"], abs=1e-4)
        close(tmp_path / name, tmp_path / "alone")


def test_a_regularizer_may_begin_later(tmp_path, files, monkeypatch):
    """Before it the run is one of plain cross-entropy, or of label smoothing."""
    monkeypatch.setattr(
        checkpoints, "_remove_others", lambda *args, **options: None
    )  # the checkpoints of all steps stay

    class StoppedError(Exception):
        pass

    def stop(share: float) -> None:
        if share == 1.0:
            raise StoppedError

    late = {"steps": 4, "start_after": 3}
    runs_of = {
        "none": text_trial(files, "none", set={"steps": 4}, save_seconds=0.0),
        "late": text_trial(files, "labo", set=late, save_seconds=0.0),
        "smoothing": text_trial(files, "label_smoothing", set={"steps": 4}, save_seconds=0.0),
        "smoothed": text_trial(files, "labo", set={**late, "start_with": "label_smoothing"}, save_seconds=0.0),
        "soon": text_trial(files, "labo", set={"steps": 4, "start_after": 2}, save_seconds=0.0),
    }
    before = {}
    for name, asked in runs_of.items():
        with pytest.raises(StoppedError):
            run_trial.run(asked, tmp_path / name, stop)
        before[name] = load_file(tmp_path / name / "checkpoints" / "checkpoint-3" / "model.safetensors")
    for name, other in (("late", "none"), ("smoothed", "smoothing")):
        assert all(torch.equal(before[name][key], before[other][key]) for key in before[other])
    assert any(not torch.equal(before["soon"][key], before["none"][key]) for key in before["none"])


@pytest.mark.parametrize("start", [4, 5])
def test_a_regularizer_that_would_never_begin_is_refused(tmp_path, files, start):
    with pytest.raises(UserError, match=f"`start_after` to be below the 4 steps of this run, .*, but got {start}"):
        run_trial.run(text_trial(files, set={"steps": 4, "start_after": start}), tmp_path / "run")
    with pytest.raises(UserError, match="requires `start_after`"):
        text_trial(files, set={"start_with": "label_smoothing"})


def test_the_mean_of_the_last_epochs_is_kept(tmp_path, files, monkeypatch):
    kept = []
    mean = weight_averaging.mean
    monkeypatch.setattr(weight_averaging, "mean", lambda paths: kept.extend(map(load_file, paths)) or mean(paths))
    run_trial.run(text_trial(files, set={"average_epochs": 2}), tmp_path / "run")
    found = load_file(tmp_path / "run" / trials.WEIGHTS)
    assert len(kept) == 2
    assert not torch.equal(kept[0]["lm_head.weight"], kept[1]["lm_head.weight"])
    for name, value in found.items():
        torch.testing.assert_close(value, (kept[0][name] + kept[1][name]) / 2)
    assert not (tmp_path / "run" / "checkpoints").exists()


def worth(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """The value of each epoch to come, the lower the better; the last one again and again."""
    validate, left = TranslationEvaluator.validate, list(values)

    def valued(*args: Any, **options: Any) -> tuple[dict[str, float], float]:
        return validate(*args, **options)[0], left.pop(0) if len(left) > 1 else left[0]

    monkeypatch.setattr(TranslationEvaluator, "validate", valued)


def patient(files: dict[str, str], patience: int, epochs: int, **options: Any) -> trials.Trial:
    asked = text_trial(files, checkpoint="best", set={"patience": patience}, **options)
    return trials.Trial(**{**vars(asked), "settings": {**asked.settings, "epochs": epochs}})


def test_patience_ends_a_run_that_gets_worse(tmp_path, files, monkeypatch):
    worth(monkeypatch, 2.0, 3.0)
    record = run_trial.run(patient(files, 1, 30), tmp_path / "run")
    assert len(curve(tmp_path / "run")) == 2
    assert record["step"] == curve(tmp_path / "run")[0]["step"]
    with pytest.raises(UserError, match="requires --checkpoint best"):
        run_trial.run(text_trial(files, set={"patience": 1}), tmp_path / "last")
    with pytest.raises(UserError, match="leave --checkpoint best out"):
        run_trial.run(text_trial(files, checkpoint="best", set={"average_epochs": 1}), tmp_path / "mean")


def test_an_epoch_as_good_as_the_best_ends_no_run(tmp_path, files, monkeypatch):
    worth(monkeypatch, 2.0, 3.0, 2.0, 2.0, 3.0, 2.5, 1.0)
    record = run_trial.run(patient(files, 2, 9), tmp_path / "run")
    lines = curve(tmp_path / "run")
    assert [line.get("tied", False) for line in lines] == [False, False, True, True, False, False]
    assert record["step"] == lines[0]["step"]
    worth(monkeypatch, 2.0)
    run_trial.run(patient(files, 1, 4), tmp_path / "flat")
    assert len(curve(tmp_path / "flat")) == 4


def test_chrf_decides_as_long_as_bleu_is_0(monkeypatch):
    evaluator = TranslationEvaluator({"vocabulary_size": 9}, {}, {})
    examples = SimpleNamespace(target_text=["eins zwei drei vier", "fünf"])
    monkeypatch.setattr(TranslationEvaluator, "tokens", lambda *args: [{"nll": 1.0, "perplexity": 2.0}])

    def value(*hypotheses: str) -> float:
        monkeypatch.setattr(TranslationEvaluator, "translations", lambda *args, **options: list(hypotheses))
        return evaluator.validate(torch.nn.Identity(), examples, best=True)[1]

    nothing, letters, right = value("x", "y"), value("eine", "fün"), value("eins zwei drei vier", "x")
    assert nothing == 100
    assert letters == pytest.approx(100 - chrf(["eine", "fün"], examples.target_text)[0])
    assert right < 0 <= letters < nothing


def test_a_language_without_spaces_is_measured(tmp_path, capsys):
    asked = ["train", "numbers", "--option", "target_language=ja", "--train-size", "60", "--steps", "2"]
    assert cli.main([*asked, "--method", "none", "--set", "beam=1", "--output", str(tmp_path / "ja")]) == 0
    assert "BLEU splits the translations with sacreBLEU's tokenizer 'char', for the language 'ja'" in (
        capsys.readouterr().err
    )
    record = json.loads((tmp_path / "ja" / "record.json").read_text())
    assert "|tok:char|" in record["signatures"]["bleu"]
    run = saved_run.load(tmp_path / "ja")
    references = run.examples("test").target_text
    assert run.evaluator.bleu(references, run.examples("test")) == pytest.approx(100)
    assert bleu(references, references)[0] == 0
    # A run of an earlier version is evaluated as it was.
    forget_digests(tmp_path / "ja")
    about = json.loads((tmp_path / "ja" / "run.json").read_text())
    del about["preprocessing"]["bleu_tokenizer"]
    (tmp_path / "ja" / "run.json").write_text(json.dumps(about))
    assert "|tok:13a|" in saved_run.load(tmp_path / "ja").evaluator.signatures()["bleu"]
    asked += ["--option", "bleu_tokenizer=intl", "--output", str(tmp_path / "intl")]
    assert cli.main([*asked, "--method", "none", "--set", "beam=1"]) == 0
    assert "|tok:intl|" in json.loads((tmp_path / "intl" / "record.json").read_text())["signatures"]["bleu"]


@pytest.mark.parametrize("method", ["cs_kd", "dlb", "distillation"])
def test_methods_for_one_label_an_example_are_refused(tmp_path, files, method):
    with pytest.raises(UserError, match=f"Method '{method}' needs .*: it is for one label per example"):
        run_trial.run(text_trial(files, method), tmp_path / "run")


def test_a_line_longer_than_the_network_takes_is_read_up_to_there(trained, files):
    run = saved_run.load(trained)
    known = Pairs(["sieben " * 2000, "sieben"], ["seven", "seven " * 2000])
    long = run.evaluator.examples(known)
    cut = long.truncated((1024, 1024))
    assert cut.features.lengths.tolist() == [1024, long.features.lengths[1]]
    assert cut.target.lengths.tolist() == [long.target.lengths[0], 1024]
    assert cut.features[0][-1] == long.features[0][-1]  # the end mark
    assert torch.equal(cut.target[1], long.target[1][:1024])
    assert (cut.source_text, cut.target_text) == (known.source, known.target)
    assert run.evaluator.tokens(run.model, long, (1.0,))[0] == run.evaluator.tokens(run.model, cut, (1.0,))[0]
    assert run.evaluator.temperature(run.model, long) > 0
    assert judged.sentence_labels(run.model, flat.create_method("labo", {}), cut, run.evaluator.vocabulary)
    assert "2 of 2 new pairs have a side longer than the 1,024 pieces" in run.notes(long, "new")[0]
    assert run.notes(run.splits.test, "test") == ()


def test_long_lines_to_validate_and_test_do_not_stop_a_run(tmp_path, files, monkeypatch):
    monkeypatch.setattr(models, "POSITIONS", 24)
    lines = {"source": "sieben " * 60 + "\nsieben\n", "target": "seven\n" + "seven " * 60 + "\n"}
    given = {**files, "max_length": 23}
    for part in ("validation", "test"):
        for side, text in lines.items():
            given[f"{part}_{side}"] = str(tmp_path / f"{part}.{side}")
            (tmp_path / f"{part}.{side}").write_text(text, encoding="utf-8")
    task = tasks.create("translation", **given)
    notes = task.notes(task.splits(0), {"model": "tiny", **SMALL})
    assert [note.partition(":")[0] for note in notes[-2:]] == [
        f"2 of 2 {part} pairs have a side longer than the 24 pieces that the network takes"
        for part in ("validation", "test")
    ]
    record = run_trial.run(text_trial(given, checkpoint="best", curves=True), tmp_path / "run")
    assert record["metrics"]["nll"] > 0
    assert run_trial.run(text_trial(given, tuning=True), tmp_path / "tuning")["validation"]["nll"] > 0
    with pytest.raises(UserError, match=r"`max_length` to be at most 23, one less than .* 'tiny' takes, but got 24"):
        run_trial.run(text_trial({**given, "max_length": 24}), tmp_path / "longer")


def test_the_temperature_is_of_tokens_evenly_spaced(trained, monkeypatch):
    """Be they further apart than a batch is long."""
    run = saved_run.load(trained)
    examples, size = run.splits.validation, run.description["preprocessing"]["vocabulary_size"]
    logits, labels = map(torch.cat, zip(*run.evaluator._logits(run.model, examples), strict=True))
    taken: list[torch.Tensor] = []
    monkeypatch.setattr(judged, "search_temperature", lambda found, _: taken.append(found) or 1.0)
    monkeypatch.setattr(judged, "SCORED_ELEMENTS", size * 8)
    for stride in (1, 3, 40):
        monkeypatch.setattr(judged, "TEMPERATURE_ELEMENTS", -(-size * len(labels) // stride))
        run.evaluator.temperature(run.model, examples)
        torch.testing.assert_close(taken.pop(), logits[::stride])


@pytest.mark.parametrize(("key", "value"), [("beam", 0), ("beam", -1), ("beam", 1.5), ("length_penalty", float("nan"))])
def test_options_of_the_search_are_seen_to_before_training(files, key, value):
    with pytest.raises(UserError, match=f"Expected setting `{key}` to be a .* number.*, but got {value}"):
        text_trial(files, set={key: value})
    assert text_trial(files, set={"length_penalty": -0.5}).settings["length_penalty"] == -0.5


@pytest.mark.parametrize("options", [{"curves": True}, {"checkpoint": "best"}])
def test_a_network_that_gives_no_numbers_at_the_end_of_an_epoch_is_a_failed_run(tmp_path, files, monkeypatch, options):
    def diverged(*args: Any) -> None:
        raise NonFiniteLogitsError

    monkeypatch.setattr(TranslationEvaluator, "tokens", diverged)
    asked = text_trial(files, **options)
    failed = run_trial.run(asked, tmp_path / "run")["failed"]
    assert failed["reason"] == "the network gives non-finite logits for the validation split"
    assert 0 < failed["step"] < 100
    assert trials.read_record(tmp_path / "run")


def test_a_run_that_lost_patience_before_a_kill_trains_no_further(tmp_path, files, monkeypatch):
    worth(monkeypatch, 1.0, 2.0, 1.0, 2.0)
    asked = patient(files, 1, 30, save_seconds=0.0)
    whole = run_trial.run(asked, tmp_path / "whole")

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(TranslationEvaluator, "test_metrics", killed)
        with pytest.raises(KeyboardInterrupt):
            run_trial.run(asked, tmp_path / "cut")
    resumed = run_trial.run(asked, tmp_path / "cut")
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert (resumed["metrics"], resumed["step"]) == (whole["metrics"], whole["step"])
    close(tmp_path / "cut", tmp_path / "whole", 0.0)


def test_training_pairs_over_the_budget_of_a_batch_are_told(files, tmp_path, capsys):
    text = ["--source", files["source"], "--target", files["target"], "--steps", "1", "--set", "beam=1"]

    def train(name: str, *more: str) -> str:
        assert cli.main(["train", *text, "--method", "none", *more, "--output", str(tmp_path / name)]) == 0
        return capsys.readouterr().err

    assert "training pairs have more than the 8 tokens of a batch, the longest" in train("a", "--set", "tokens=8")
    assert "tokens of a batch" not in train("b")
    compared = ["compare", "translation", *text, "--set", "tokens=8", "--methods", "none,labo", "--baseline", "none"]
    compared += ["--jobs", "1", "--seeds", "1", "--settings-per-method", "1", "--output", str(tmp_path / "c")]
    assert cli.main(compared) == 0
    found = capsys.readouterr()
    assert (found.out + found.err).count("tokens of a batch") == 1
    for name in ("report.md", "report.html"):
        page = (tmp_path / "c" / name).read_text(encoding="utf-8")
        assert "with source a.de, target a.en" in page


def test_what_goes_wrong_in_measuring_does_not_cost_the_weights(tmp_path, files, monkeypatch):
    def broken(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(TranslationEvaluator, "test_metrics", broken)
    with pytest.raises(ZeroDivisionError):
        run_trial.run(text_trial(files, set={"steps": 1}), tmp_path / "run")
    assert load_file(tmp_path / "run" / trials.WEIGHTS)


def test_places_of_like_length_make_batches():
    found = list(batches_by_length(torch.tensor([5, 1, 4, 9, 2]), 9))
    assert found == [[1, 4], [2], [0], [3]]
    assert list(batches_by_length(torch.tensor([5, 1, 4, 9, 2]), 12)) == [[1, 4, 2], [0], [3]]
