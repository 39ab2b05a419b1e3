"""Checkpoints that a full disk, a crash or another network spoils: one sentence, and nothing that was whole is lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from experiments import forget_digests, trial
from labo.cli import main
from labo.errors import UserError
from labo.experiment import run_trial, saved_run
from labo.integrations import checkpoint_files
from labo.integrations.checkpoint_files import checkpoints
from labo.records import trial as trials
from labo.training import checkpoints as kept

EPOCHS = 3
# The network of these runs takes 340 kB, its optimizer twice as much.
BETWEEN, BELOW = 500_000, 300_000


def asked(**options: Any) -> trials.Trial:
    return trial("unigram_smoothing", epochs=EPOCHS, set={"dropout": 0.2, "ema": 0.9}, **options)


def same(mine: Path, theirs: Path) -> bool:
    first, second = (load_file(folder / trials.WEIGHTS) for folder in (mine, theirs))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def one_sentence(error: BaseException, *parts: str) -> None:
    text = str(error)
    assert "\n" not in text
    assert text.count(". ") == 0
    assert text.endswith(".")
    assert all(part in text for part in parts), text


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing befell."""
    folder = tmp_path_factory.mktemp("whole")
    run_trial.run(asked(), folder)
    return folder


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, as none may on a disk that is full."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("I/O error: No space left on device (os error 28)"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 395968 vs 395856\nframe #0"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_save_that_fails_leaves_the_checkpoint_before_it(tmp_path, monkeypatch, whole, error):
    save = checkpoint_files.save_file

    def fail(state: Any, path: Path) -> None:
        if checkpoints(tmp_path / trials.CHECKPOINTS):
            path.write_bytes(b"half")
            raise error
        save(state, path)

    monkeypatch.setattr(checkpoint_files, "save_file", fail)
    with pytest.raises(UserError) as caught:
        run_trial.run(asked(save_seconds=0.0), tmp_path)
    home = tmp_path / trials.CHECKPOINTS
    one_sentence(caught.value, f"Cannot write a checkpoint into '{home}'", "is complete")
    assert [path.name for path in home.iterdir()] == ["checkpoint-1"]
    monkeypatch.undo()
    run_trial.run(asked(), tmp_path)
    assert same(tmp_path, whole)


@pytest.mark.parametrize("size", [BETWEEN, BELOW])
def test_a_disk_that_is_full_from_the_start_is_told(tmp_path, whole, size):
    with largest_file(size), pytest.raises(UserError) as caught:
        run_trial.run(asked(save_seconds=0.0), tmp_path)
    one_sentence(caught.value, f"into '{tmp_path / trials.CHECKPOINTS}'")
    assert not list((tmp_path / trials.CHECKPOINTS).iterdir())
    run_trial.run(asked(), tmp_path)
    assert same(tmp_path, whole)


def test_weights_that_find_no_room_at_the_end_are_told(tmp_path, whole, capsys):
    arguments = ["train", "digits", "--method", "unigram_smoothing", "--epochs", str(EPOCHS), "--output", str(tmp_path)]
    arguments += ["--set", "dropout=0.2", "--set", "ema=0.9"]
    with largest_file(BELOW):
        assert main(arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    one_sentence(Exception(told), f"labo: There is no room to write into '{tmp_path}'", "goes on")
    assert not list(tmp_path.glob("*model.safetensors*"))
    assert not (tmp_path / trials.RECORD).exists()
    assert main(arguments) == 0
    assert same(tmp_path, whole)


@pytest.mark.parametrize("name", [trials.RUN, trials.RECORD, "figures.json"])
def test_small_files_that_find_no_room_are_told(tmp_path, monkeypatch, whole, name):
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError) as caught:
        run_trial.run(asked(), tmp_path)
    one_sentence(caught.value, f"There is no room to write into '{tmp_path}' (No space left on device)")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    monkeypatch.undo()
    run_trial.run(asked(), tmp_path)
    assert same(tmp_path, whole)


def stopped(folder: Path, share: float = 0.5) -> Path:
    """A run stopped at a share of its steps, with a checkpoint."""

    def stop(done: float) -> None:
        if done >= share:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial.run(asked(save_seconds=0.0), folder, stop)
    (found,) = (folder / trials.CHECKPOINTS).glob("checkpoint-*")
    return found


@pytest.mark.parametrize("spoilt", ["half a file", "empty", "no weights", "empty state"])
def test_a_newer_checkpoint_that_is_not_whole_is_passed_over(tmp_path, whole, caplog, spoilt):
    older = stopped(tmp_path)
    newer = older.with_name("checkpoint-18")
    if spoilt == "empty":
        newer.mkdir()
    else:
        shutil.copytree(older, newer)
    if spoilt == "half a file":
        (newer / "optimizer.pt").write_bytes((older / "optimizer.pt").read_bytes()[:1000])
    elif spoilt == "no weights":
        (newer / trials.WEIGHTS).unlink()
    elif spoilt == "empty state":
        (newer / kept.STATE).write_text("")
    run_trial.run(asked(), tmp_path)
    assert same(tmp_path, whole)
    (told,) = [each.getMessage() for each in caplog.records if each.name.startswith("labo")]
    assert told.startswith(f"The checkpoint '{newer}' is damaged (")
    assert told.endswith(f"; the run goes on from '{older.name}'.")


def test_the_checkpoint_just_written_stays_beside_a_newer_damaged_one(tmp_path, caplog):
    older = stopped(tmp_path)
    older.with_name("checkpoint-18").mkdir()

    def stop(done: float) -> None:
        if done >= 0.7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial.run(asked(save_seconds=0.0), tmp_path, stop)
    (left,) = older.parent.iterdir()
    assert left.name == "checkpoint-14"
    assert kept.newest_complete(older.parent) == left


def test_a_checkpoint_of_another_network_gets_one_sentence(tmp_path):
    found = stopped(tmp_path)
    about = json.loads((tmp_path / trials.RUN).read_text())
    about["settings"]["hidden"] = 8
    (tmp_path / trials.RUN).write_text(json.dumps(about))
    smaller = asked()
    smaller.settings["hidden"] = 8
    with pytest.raises(UserError) as caught:
        run_trial.run(smaller, tmp_path)
    one_sentence(caught.value, f"The checkpoint '{found}' is of another network", "(256, 64)", "(8, 64)")
    deeper = asked()
    about["settings"] |= {"hidden": 256, "layers": 3}
    deeper.settings["layers"] = 3
    (tmp_path / trials.RUN).write_text(json.dumps(about))
    with pytest.raises(UserError) as caught:
        run_trial.run(deeper, tmp_path)
    one_sentence(caught.value, "is of another network")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "linear"}, "are not of the network in its run.json"),
        ({"hidden": None}, "its settings lack 'hidden'"),
        ({"model": "resnet18"}, "Unknown model 'resnet18'"),
    ],
)
def test_a_run_whose_settings_were_edited_gets_one_sentence(tmp_path, whole, change, told):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    forget_digests(tmp_path)
    about = json.loads((tmp_path / trials.RUN).read_text())
    about["settings"] = {key: value for key, value in (about["settings"] | change).items() if value is not None}
    (tmp_path / trials.RUN).write_text(json.dumps(about))
    with pytest.raises(UserError, match=told) as caught:
        saved_run.load(tmp_path).evaluate("test")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "pictures.npz"
    images = np.random.default_rng(0).integers(0, 255, (60, 8, 8, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(60) % 3)
    return str(path)


def test_the_folder_of_a_run_of_another_model_is_refused(tmp_path, pictures, capsys):
    command = ["train", "image", "--data", pictures, "--option", "validation_size=9", "--epochs", "1"]
    command += ["--output", str(tmp_path / "run"), "--set", "batch_size=20"]
    assert main([*command, "--set", "width=4"]) == 0
    before = (tmp_path / "run" / trials.WEIGHTS).read_bytes()
    capsys.readouterr()
    assert main([*command, "--model", "wrn-10-1"]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("labo: ")]
    assert len(told) == 1
    assert told[0].endswith("holds another run (model was convnet, now wrn-10-1): name another one.")
    assert (tmp_path / "run" / trials.WEIGHTS).read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["model=vit_small", "patch=3"], "whole number of patches of 3 pixels a side, but got 8"),
        (["model=resnet18", "stem=imagenet"], "needs images of at least 32 x 32 pixels, but got 8 x 8; stem=cifar"),
        (["model=resnet34", "stem=imagenet"], "needs images of at least 32 x 32 pixels"),
        (["model=hf/{folder}", "pretrained=true"], "does not take colour images of 8 x 8 pixels"),
        (["model=hf/{folder}/nothing.json"], "Expected a folder, a configuration file or a name on the hub"),
    ],
)
def test_a_model_that_the_pictures_do_not_fit_is_refused_before_training(tmp_path, pictures, capsys, settings, told):
    import transformers

    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config: Any = transformers.ViTConfig(image_size=32, patch_size=16, **small)
    config.num_labels = 3
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    capsys.readouterr()
    command = ["train", "image", "--data", pictures, "--option", "validation_size=9", "--output", str(tmp_path / "run")]
    for setting in settings:
        command += ["--set", setting.format(folder=tmp_path / "vit")]
    assert main(command) == 2
    said = capsys.readouterr()
    last = said.err.strip().splitlines()[-1]
    assert last.startswith("labo: ")
    assert told in last
    assert not (tmp_path / "run" / "curve.jsonl").exists()
    assert not (tmp_path / "run" / trials.RUN).exists()


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_state(path: Path, change: Any) -> None:
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))


DAMAGES = {
    "no optimizer": lambda at: (at / kept.OPTIMIZER).unlink(),
    "no state of the method": lambda at: (at / checkpoint_files.REGULARIZER).unlink(),
    "no average": lambda at: (at / kept.AVERAGE).unlink(),
    "weights of zeros": lambda at: zeros(at / trials.WEIGHTS),
    "one bit of the average": lambda at: flip(at / kept.AVERAGE),
    "one bit of the optimizer": lambda at: flip(at / kept.OPTIMIZER),
    "no step": lambda at: change_state(at / kept.STATE, lambda state: state.pop("step")),
    "a later step": lambda at: change_state(at / kept.STATE, lambda state: state.update(step=state["step"] + 7)),
    "a state of nothing": lambda at: (at / kept.STATE).write_text("{}"),
    "no manifest": lambda at: (at / kept.MANIFEST).unlink(),
    "a manifest of nothing": lambda at: (at / kept.MANIFEST).write_text("{}"),
    "a manifest of wrong types": lambda at: (at / kept.MANIFEST).write_text(
        json.dumps({path.name: {"bytes": "x", "sha256": 5} for path in at.iterdir()})
    ),
    "a manifest nested deeply": lambda at: (at / kept.MANIFEST).write_text('{"a": ' + "[" * 100_000),
    "another file": lambda at: (at / "scheduler.pt").write_text(""),
    "half deleted": lambda at: [(at / name).unlink() for name in (kept.STATE, kept.OPTIMIZER, kept.MANIFEST)],
    "a changed curve": lambda at: flip(at.parent.parent / trials.CURVE),
    "no curve": lambda at: (at.parent.parent / trials.CURVE).unlink(),
}


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run stopped in its second epoch, with a checkpoint; not to be changed."""
    folder = tmp_path_factory.mktemp("cut")
    stopped(folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_does_not_agree_with_its_manifest_is_not_gone_on_from(tmp_path, cut, damage):
    run = Path(shutil.copytree(cut, tmp_path / "run"))
    (checkpoint,) = (run / trials.CHECKPOINTS).glob("checkpoint-*")
    DAMAGES[damage](checkpoint)
    with pytest.raises(UserError) as caught:
        run_trial.run(asked(), run)
    one_sentence(caught.value, f"The checkpoint '{checkpoint}' is damaged (", "; delete it to start the run again")


@pytest.mark.parametrize("damage", ["no optimizer", "weights of zeros", "a later step", "no manifest", "half deleted"])
def test_the_checkpoint_before_a_damaged_one_is_taken(tmp_path, cut, whole, caplog, damage):
    run = Path(shutil.copytree(cut, tmp_path / "run"))
    (older,) = (run / trials.CHECKPOINTS).glob("checkpoint-*")
    newer = older.with_name("checkpoint-18")
    shutil.copytree(older, newer)
    DAMAGES[damage](newer)
    run_trial.run(asked(), run)
    assert same(run, whole)
    (told,) = [each.getMessage() for each in caplog.records if each.name.startswith("labo")]
    assert told.startswith(f"The checkpoint '{newer}' is damaged (")


def test_a_checkpoint_without_digests_is_of_an_earlier_version(tmp_path, cut):
    run = Path(shutil.copytree(cut, tmp_path / "run"))
    (checkpoint,) = (run / trials.CHECKPOINTS).glob("checkpoint-*")
    (checkpoint / kept.MANIFEST).unlink()
    change_state(checkpoint / kept.STATE, lambda state: state.pop("manifest"))
    with pytest.raises(kept.OutdatedCheckpointError) as caught:
        run_trial.run(asked(), run)
    one_sentence(caught.value, "of an earlier version of labo, without digests of its files: delete it to start")
    assert kept.remove_outdated(checkpoint.parent)  # what `labo compare` does
    assert not checkpoint.parent.exists()


@pytest.mark.parametrize("removal", ["first", "second"])
def test_a_kill_while_the_checkpoint_before_is_removed_leaves_a_whole_one(tmp_path, monkeypatch, whole, removal):
    """No half of a checkpoint is ever under the name of one."""
    rmtree, count = shutil.rmtree, 0

    def kill(path: Any, **options: Any) -> None:
        nonlocal count
        if Path(path).name == ".removing" and Path(path).exists():
            count += 1
            if count == (1 if removal == "first" else 2):
                (Path(path) / kept.OPTIMIZER).unlink()
                raise KeyboardInterrupt
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", kill)
    with pytest.raises(KeyboardInterrupt):
        run_trial.run(asked(save_seconds=0.0), tmp_path)
    monkeypatch.undo()
    assert all(kept._damage(path) is None for path in checkpoints(tmp_path / trials.CHECKPOINTS))
    run_trial.run(asked(), tmp_path)
    assert same(tmp_path, whole)


@pytest.mark.parametrize("spoil", [flip, zeros, Path.unlink])
@pytest.mark.parametrize("kind", ["best", "averaged"])
def test_damaged_weights_of_an_epoch_are_not_gone_on_with(tmp_path, kind, spoil):
    """The weights of the best epoch so far, and those that are averaged, lie beside the checkpoints."""
    settings = {"average_epochs": 3} if kind == "averaged" else {}
    options: dict[str, Any] = {"checkpoint": "best" if kind == "best" else "last", "set": settings, "epochs": 3}

    def stop(done: float) -> None:
        if done >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial.run(trial("none", save_seconds=0.0, **options), tmp_path, stop)
    home = tmp_path if kind == "best" else tmp_path / trials.CHECKPOINTS
    path = home / (trials.BEST_WEIGHTS if kind == "best" else "epoch-7.safetensors")
    spoil(path)
    with pytest.raises(UserError) as caught:
        run_trial.run(trial("none", **options), tmp_path)
    one_sentence(caught.value, f"The weights '{path}' of an unfinished run are damaged (")
