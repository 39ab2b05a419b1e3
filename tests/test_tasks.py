"""Data, splits and what is said of data that will not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labo import tasks
from labo.errors import UserError
from labo.splitting import stratified, stratified_sample
from labo.tasks.labels import flip_labels, parse_label_noise
from labo.tasks.tabular.custom import DUPLICATE_KEY_COLUMNS


@pytest.fixture
def frame() -> pd.DataFrame:
    draw = np.random.default_rng(0)
    size = 200
    label = draw.choice(["no", "yes", "perhaps"], size, p=[0.5, 0.4, 0.1])
    return pd.DataFrame(
        {
            "age": np.round(draw.normal(40, 10, size), 1),
            "town": draw.choice(["Ulm", "Bonn", "Köln"], size),
            "constant": 1,
            "answer": label,
        }
    )


def save(frame: pd.DataFrame, path: Path) -> str:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        columns: dict[str, Any] = {str(name): frame[name].to_numpy() for name in frame.select_dtypes("number")}
        np.savez(path, **columns)
    return str(path)


def table(frame: pd.DataFrame, tmp_path: Path, **options: Any) -> Any:
    return tasks.create("table", data=save(frame, tmp_path / "data.csv"), **{"target": "answer", **options})


def test_digits_are_split_by_the_seed_and_never_overlap():
    task = tasks.create("digits")
    first, again, other = task.splits(1), task.splits(1), task.splits(2)
    assert [len(part) for part in (first.train, first.validation, first.test)] == [400, 397, 1000]
    assert torch.equal(first.train.features, again.train.features)
    assert not torch.equal(first.train.target, other.train.target)
    mean = torch.tensor([column["mean"] for column in first.preprocessing["columns"]])
    parts = (first.train, first.validation, first.test)
    pixels = torch.cat([part.features * 16 + mean for part in parts]).round()
    assert len({tuple(row) for row in pixels.int().tolist()}) == 1797  # every image once
    assert first.train.target.bincount().min() >= 38
    assert first.train.features.mean().abs() < 1e-6  # centred by the training split


def test_label_noise_leaves_the_test_split_clean():
    clean, noisy = (tasks.create("digits", label_noise=noise).splits(0) for noise in (None, "0.25,pair"))
    changed = clean.train.target != noisy.train.target
    assert changed.sum() == 100
    assert torch.equal(noisy.train.target[changed], (clean.train.target[changed] + 1) % 10)
    assert (clean.validation.target != noisy.validation.target).sum() == 99
    assert torch.equal(clean.test.target, noisy.test.target)


@pytest.mark.parametrize("kind", ["symmetric", "pair"])
def test_exactly_the_share_is_flipped(kind):
    target = torch.arange(1000) % 7
    flipped = flip_labels(target, 7, 0.333, kind, torch.Generator().manual_seed(0))
    assert (flipped != target).sum() == 333
    assert flipped.min() >= 0
    assert flipped.max() < 7


@pytest.mark.parametrize("text", ["1.5", "-0.1,pair", "0.2,odd", "much", "nan"])
def test_wrong_label_noise_is_refused(text):
    with pytest.raises(UserError, match="Expected label noise as SHARE,KIND"):
        parse_label_noise(text)


@pytest.mark.parametrize("largest", ["first", "last"])
def test_fewer_examples_keep_the_proportions_wherever_a_large_class_stands(largest: str):
    counts = [10_000, *[2] * 99] if largest == "first" else [*[2] * 99, 10_000]
    target = torch.arange(100).repeat_interleave(torch.tensor(counts))
    found = target[stratified_sample(target, 200, torch.Generator().manual_seed(0))].bincount()
    assert found.min() == 1
    assert found.max() >= 99  # of the hundred that are left when every class has one


def test_stratified_parts_have_the_sizes_and_proportions_asked_for():
    target = torch.cat([torch.full((n,), i) for i, n in enumerate((101, 53, 7, 2))])
    parts = stratified(target, (100, 40, 23), torch.Generator().manual_seed(0))
    assert [len(part) for part in parts] == [100, 40, 23]
    assert torch.cat(parts).sort().values.tolist() == list(range(163))
    assert parts[0].unique().numel() == 100
    for label, count in enumerate((101, 53, 7, 2)):
        assert abs(int((target[parts[0]] == label).sum()) - count * 100 / 163) <= 1.5


@given(st.lists(st.integers(1, 30), min_size=2, max_size=6), st.data())
def test_parts_are_whole_whatever_is_asked_for(counts, data):
    target = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    size = data.draw(st.integers(len(counts), len(target)))
    kept = stratified_sample(target, size, torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    assert len(set(kept.tolist())) == size
    assert len(target[kept].unique()) == len(counts)
    shares = data.draw(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=4))
    parts = stratified(target, shares, torch.Generator().manual_seed(0))
    assert torch.cat(parts).sort().values.tolist() == list(range(len(target)))


@pytest.mark.parametrize("size", [2, 5])
def test_no_class_can_be_left_out(size):
    with pytest.raises(ValueError, match="`size` from 3 to 4"):
        stratified_sample(torch.tensor([0, 1, 2, 2]), size, torch.Generator())


def test_rows_longer_than_the_header_are_refused(tmp_path):
    # A comma at the end of a row is no value, and shifts no column.
    (tmp_path / "a.csv").write_text("y,a,b\n" + "p,1,2,\nq,3,4,\n" * 10)
    assert tasks.create("table", data=str(tmp_path / "a.csv"), target="y").splits(0).classes == ("p", "q")
    (tmp_path / "a.csv").write_text("y,a,b\n" + "p,1,2,9\nq,3,4,9\n" * 10)
    with pytest.raises(UserError, match=r"Line 2 of .*a\.csv' has 4 cells, but its header has 3"):
        tasks.create("table", data=str(tmp_path / "a.csv"), target="y").splits(0)


def test_cells_that_hold_lists_are_refused(frame, tmp_path):
    frame["path"] = [[1, 2]] * 200
    frame.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"column 'path' .* holds lists or objects"):
        tasks.create("table", data=str(tmp_path / "a.parquet"), target="answer").splits(0)


def test_rows_are_told_as_the_file_has_them(frame, tmp_path):
    frame = change(frame, 14, "age", "forty")
    frame.loc[[2, 3], "answer"] = None
    with pytest.raises(UserError, match="in row 15 of column 'age', but got 'forty'"):
        table(frame, tmp_path).splits(0)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_becomes_features(frame, tmp_path, ending):
    path = save(frame, tmp_path / f"data.{ending}")
    splits = tasks.create("table", data=path, target="answer").splits(0)
    assert splits.classes == ("no", "perhaps", "yes")
    assert splits.train.features.shape == (120, 4)  # age, three towns
    assert [len(splits.validation), len(splits.test)] == [40, 40]
    age, towns = splits.train.features[:, 0], splits.train.features[:, 1:]
    torch.testing.assert_close(age.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(age.std(correction=0), torch.tensor(1.0))
    assert torch.equal(towns.sum(1), torch.ones(120))
    assert any("'constant' is constant" in note for note in splits.notes)


def test_arrays_become_columns(tmp_path):
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", image=draw.normal(size=(60, 2, 2)), label=np.arange(60) % 3)
    splits = tasks.create("table", data=str(tmp_path / "a.npz"), target="label").splits(0)
    assert splits.classes == ("0", "1", "2")
    assert [column["name"] for column in splits.preprocessing["columns"]] == [f"image_{i}" for i in range(4)]


def test_copies_are_told_however_many_columns_agree(tmp_path):
    """Rows 1 and 2 agree in the columns compared first and nowhere else; rows 3 to 5 agree in all."""
    draw = np.random.default_rng(0)
    values = draw.normal(size=(60, DUPLICATE_KEY_COLUMNS + 4)).astype(np.float32)
    values[1, :DUPLICATE_KEY_COLUMNS] = values[0, :DUPLICATE_KEY_COLUMNS]
    values[3:5] = values[2]
    label = np.array([0, 0, 1, 1, 1, *[0, 1] * 27, 0])
    np.savez(tmp_path / "a.npz", label=label, x=values)
    notes = tasks.create("table", data=str(tmp_path / "a.npz"), target="label").splits(0).notes
    assert [note for note in notes if "copies" in note] == [
        "2 rows are copies of another row; copies may be split between training and test."
    ]


def test_missing_values_are_marked_and_told(frame, tmp_path):
    frame.loc[::4, "age"] = np.nan
    frame.loc[::5, "town"] = None
    frame.loc[3, "answer"] = None
    splits = table(frame, tmp_path).splits(0)
    told = " ".join(splits.notes)
    assert "'age' lacks 50 values" in told
    assert "'town' lacks 40 values" in told
    assert "1 row has no 'answer' and is left out." in told
    features = torch.cat([splits.train.features, splits.validation.features, splits.test.features])
    assert features.shape == (199, 2 + 4)
    assert features[:, 1].sum() == 50
    assert not features[features[:, 1] == 1, 0].any()  # set to the mean


def test_statistics_come_from_the_training_split_alone(frame, tmp_path):
    frame["part"] = ["train"] * 100 + ["validation"] * 50 + ["test"] * 50
    before = table(frame, tmp_path, split="part").splits(0)
    frame.loc[150:, "age"] += 1000
    after = table(frame, tmp_path, split="part").splits(0)
    assert before.preprocessing == after.preprocessing
    assert torch.equal(before.train.features, after.train.features)
    assert [len(part) for part in (after.train, after.validation, after.test)] == [100, 50, 50]


def test_own_split_without_validation_draws_one(frame, tmp_path):
    frame["part"] = ["train"] * 150 + ["test"] * 50
    splits = table(frame, tmp_path, split="part").splits(0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [120, 30, 50]
    assert any("the seed draws a fifth of the training rows" in note for note in splits.notes)


def test_train_size_keeps_some_of_the_training_examples(frame, tmp_path):
    assert len(table(frame, tmp_path, train_size=30).splits(0).train) == 30


def test_new_inputs_are_read_as_the_training_inputs_were(frame, tmp_path):
    task = table(frame, tmp_path)
    splits = task.splits(0)
    new = frame.drop(columns="answer").head(5)
    new.loc[0, "town"] = "Paris"
    read = task.read_inputs(Path(save(new, tmp_path / "new.csv")), splits.preprocessing)
    assert read.shape == (5, 4)
    assert not read[0, 1:].any()  # a town that training never saw
    with pytest.raises(UserError, match="lacks the column 'town'"):
        task.read_inputs(Path(save(new.drop(columns="town"), tmp_path / "less.csv")), splits.preprocessing)


def change(frame: pd.DataFrame, row: int, column: str, value: Any) -> pd.DataFrame:
    frame = frame.astype({column: object})
    frame.loc[row, column] = value
    return frame


@pytest.mark.parametrize(
    ("spoil", "options", "told"),
    [
        (lambda f: f, {"target": "anser"}, "Unknown column 'anser'; the nearest is 'answer'"),
        (lambda f: f, {"split": "part"}, "Unknown column 'part'"),
        (lambda f: change(f, 6, "age", "forty"), {}, "a finite number in row 7 of column 'age', but got 'forty'"),
        (lambda f: change(f, 6, "age", "inf"), {}, "a finite number in row 7 of column 'age', but got 'inf'"),
        (lambda f: f.assign(answer="yes"), {}, "one class only, 'yes'"),
        (lambda f: change(f, 8, "answer", "never"), {}, r"class 'never' has a single example \(row 9\)"),
        (lambda f: f.assign(answer=np.linspace(0, 1, 200)), {}, "a quantity, not classes"),
        (lambda f: f[["constant", "answer"]], {}, "No column is left to learn from"),
        (lambda f: f.head(0), {}, "holds no rows"),
        (lambda f: f.assign(part="train"), {"split": "part"}, "has no 'test' row"),
        (lambda f: change(f.assign(part="train"), 2, "part", "exam"), {"split": "part"}, "in row 3 of column 'part'"),
        (lambda f: f, {"train_size": 500}, r"a train size from 3 \(the number of classes\) to 120"),
    ],
)
def test_data_that_will_not_do_get_one_sentence(frame, tmp_path, spoil, options, told):
    with pytest.raises(UserError, match=told) as caught:
        table(spoil(frame), tmp_path, **options).splits(0)
    assert "\n" not in str(caught.value)


def test_a_class_that_only_tests_is_refused(frame, tmp_path):
    frame["part"] = np.where(frame["answer"] == "perhaps", "test", "train")
    frame.loc[frame.index[frame["answer"] == "no"][:5], "part"] = "test"
    with pytest.raises(UserError, match="'perhaps' has no training row"):
        table(frame, tmp_path, split="part").splits(0)


@pytest.mark.parametrize("name", ["missing.csv", "empty.csv", "torn.parquet", "torn.npz", "data.xlsx", "latin.csv"])
def test_files_that_cannot_be_read_get_one_sentence(tmp_path, name):
    path = tmp_path / name
    if not name.startswith("missing"):
        content = {"empty": b"", "torn": b"PK\x03\x04 torn", "data": b"x", "latin": b"a,b\n\xe4,1\n"}
        path.write_bytes(content[path.stem])
    with pytest.raises(UserError, match=path.stem) as caught:
        tasks.create("table", data=str(path), target="b").splits(0)
    assert "\n" not in str(caught.value)


def test_unknown_tasks_and_options_are_named():
    with pytest.raises(UserError, match="nearest is 'digits'"):
        tasks.create("digit")
    with pytest.raises(UserError, match="takes no `data`"):
        tasks.create("digits", data="x.csv")
    with pytest.raises(UserError, match="--data FILE"):
        tasks.create("table")
    assert all(tasks.describe(name) for name in tasks.available())


def test_networks_refuse_what_they_cannot_be():
    task = tasks.create("digits")
    splits, settings = task.splits(0), task.default_settings()
    with pytest.raises(UserError, match="Unknown model 'mpl'; the nearest is 'mlp'"):
        task.model(splits.classes, splits.preprocessing, settings | {"model": "mpl"})
    with pytest.raises(UserError, match=r"`dropout` to be in \[0, 1\), but got 2"):
        task.model(splits.classes, splits.preprocessing, settings | {"dropout": 2})
    for name in ("mlp", "linear"):
        model = task.model(splits.classes, splits.preprocessing, settings | {"model": name, "dropout": 0.1})
        assert model(splits.test.features).shape == (1000, 10)


def test_the_fingerprint_changes_with_the_data(frame, tmp_path):
    before = table(frame, tmp_path).fingerprint()
    assert before == table(frame, tmp_path).fingerprint()
    frame.loc[0, "age"] = 99.0
    assert before != table(frame, tmp_path).fingerprint()
