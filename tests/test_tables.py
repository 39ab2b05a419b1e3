"""Tables as users have them: what is a class, what a missing value, and what no feature."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from labo import tasks
from labo.errors import UserError
from labo.report.measures import MEASURES
from labo.splitting import stratified
from labo.tasks.tabular.custom import SPLIT_FRACTIONS


def written(folder: Path, content: str, name: str = "a.csv") -> str:
    (folder / name).write_text(content, encoding="utf-8", newline="")
    return str(folder / name)


def labelled(labels: Sequence[str], copies: int = 6, separator: str = ",") -> str:
    """A .csv file with a number x, and each label in turn."""
    cells = [(f"{0.37 * row:.2f}", labels[row % len(labels)]) for row in range(copies * len(labels))]
    return "\n".join(separator.join(line) for line in [("x", "y"), *cells]) + "\n"


def rows(header: str, row: Callable[[int], str], count: int = 40) -> str:
    return "\n".join([header, *map(row, range(count))]) + "\n"


def splits_of(path: str, target: str = "y", **options: Any) -> Any:
    return tasks.create("table", data=path, target=target, **options).splits(0)


def column_names(splits: Any) -> list[str]:
    return [column["name"] for column in splits.preprocessing["columns"]]


# A class is a string.


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("250.10", "250.1", "7"), ("7", "250.1", "250.10")),
        (("1.10", "1.1"), ("1.1", "1.10")),
        (("100", "1E2", "5"), ("5", "100", "1E2")),
        (("1", "1.0", "+1"), ("+1", "1", "1.0")),
        (("7", "007"), ("007", "7")),
        (("002", "001"), ("001", "002")),
        (("10", "9"), ("9", "10")),
        (("1e400", "nan"), ("1e400", "nan")),
        (("None", "NA", "NaN", "null", "?"), ("?", "NA", "NaN", "None", "null")),
        (("True", "true"), ("True", "true")),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_a_class_is_a_string_which_numbers_only_order(tmp_path, labels, classes, kind):
    path = tmp_path / f"a.{kind}"
    column = [labels[row % len(labels)] for row in range(6 * len(labels))]
    numbers = np.arange(len(column)) * 0.37
    if kind == "csv":
        path.write_text(labelled(labels))
    elif kind == "parquet":
        pd.DataFrame({"x": numbers, "y": column}).to_parquet(path)
    else:
        np.savez(path, x=numbers, y=np.array(column))
    splits = splits_of(str(path))
    assert splits.classes == classes
    for part in (splits.train, splits.validation, splits.test):
        assert [classes[code] for code in part.target.tolist()] == [column[i] for i in part.origin.source_indices]
    assert splits.notes[0].startswith(f"{len(classes)} classes in 'y': {classes[0]} (6 rows), {classes[1]} (6)")


@pytest.mark.parametrize(("dtype", "classes"), [("float32", ("0", "1", "2.5")), ("int8", ("0", "1", "2"))])
def test_numbers_of_a_numeric_type_have_one_name(tmp_path, dtype, classes):
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=30), y=np.array([0, 1, 2.5] * 10).astype(dtype))
    assert splits_of(str(tmp_path / "a.npz")).classes == classes


def test_many_classes_are_told_in_short(tmp_path):
    note = splits_of(written(tmp_path, labelled([f"k{index:03}" for index in range(101)], copies=3))).notes[0]
    assert note.startswith("101 classes in 'y': k000 (3 rows), k001 (3), ")
    assert note.endswith("k011 (3) and 89 more.")


@pytest.mark.parametrize("count", [101, 1000])
def test_whole_numbers_that_repeat_are_classes_however_many(tmp_path, count):
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=3 * count), y=np.arange(3 * count) % count)
    assert splits_of(str(tmp_path / "a.npz")).classes == tuple(map(str, range(count)))


@pytest.mark.parametrize(
    "values", [np.linspace(0, 1, 303), np.arange(303), np.arange(303) ** 2 % 10_007, np.arange(303) % 101 / 8]
)
def test_quantities_are_no_classes(tmp_path, values):
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=303), y=values)
    with pytest.raises(UserError, match="different numbers: a quantity, not classes"):
        splits_of(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (np.full(20, np.nan), r"The column 'y' in '.*' is empty in every row\."),
        (np.full(20, ""), r"The column 'y' in '.*' is empty in every row\."),
        (np.full(20, np.inf), "Expected a class in row 1 of column 'y', but got an infinite number"),
        (np.array([1.0, 1, np.inf, 2] * 5), "Expected a class in row 3 of column 'y', but got an infinite number"),
        (
            np.array(["a", "b"] * 10, dtype=object),
            r"The array 'y' in '.*' holds Python objects.*: save y\.astype\(str\)",
        ),
        (np.array([1j, 2j] * 10), "The array 'y' in '.*' holds complex128"),
        (np.array([b"\xe4", b"b"] * 10), "The column 'y' in '.*' holds bytes that are not UTF-8"),
    ],
)
def test_targets_that_are_no_classes_get_one_sentence(tmp_path, target, told):
    np.savez(tmp_path / "a.npz", x=np.arange(20) * 0.5, y=target)
    with pytest.raises(UserError, match=told):
        splits_of(str(tmp_path / "a.npz"))


def test_bytes_are_the_strings_that_they_are(tmp_path):
    np.savez(
        tmp_path / "a.npz", x=np.arange(20) * 0.5, y=np.array(["ä", "b"] * 10).astype("U1"), z=np.full((20, 2), b"u")
    )
    assert column_names(splits_of(str(tmp_path / "a.npz"))) == ["x"]
    np.savez(tmp_path / "a.npz", x=np.arange(20) * 0.5, y=np.array(["ä".encode(), b"b"] * 10))
    assert splits_of(str(tmp_path / "a.npz")).classes == ("b", "ä")
    pd.DataFrame({"x": np.arange(20) * 0.5, "y": [b"a", b"b"] * 10}).to_parquet(tmp_path / "a.parquet")
    assert splits_of(str(tmp_path / "a.parquet")).classes == ("a", "b")


# Runs of earlier versions.


def test_a_run_that_named_001_by_its_number_is_read_as_it_was_trained(tmp_path):
    task = tasks.create("table", data=written(tmp_path, labelled(["001", "010", "2"], 10)), target="y")
    splits = task.splits(0)
    assert splits.classes == ("001", "2", "010")
    old = {"columns": splits.preprocessing["columns"]}
    before = task.recorded_splits(0, ("1", "2", "10"), old)
    assert before.classes == ("1", "2", "10")
    for part, now in ((before.train, splits.train), (before.test, splits.test)):
        assert torch.equal(part.target, now.target)
        assert torch.equal(part.features, now.features)
    new = Path(written(tmp_path, "x,y\n1,010\n2,1.0\n3,2\n4,None\n", "new.csv"))
    read = task.read_examples(new, old, ("1", "2", "10"), None)
    assert read.target.tolist() == [2, 0, 1]  # None was a missing class
    with pytest.raises(
        UserError, match=r"one of the classes trained on \(001, 2, 010\) in row 2 of column 'y'.* '1\.0'"
    ):
        task.read_examples(new, splits.preprocessing, splits.classes, None)


def test_a_run_that_merged_or_lost_classes_is_read_as_it_was_trained(tmp_path):
    column = ["None", "1.1", "1.10", "2"] * 10
    task = tasks.create("table", data=written(tmp_path, labelled(column, 1)), target="y")
    columns = task.splits(0).preprocessing["columns"]
    before: Any = task.recorded_splits(0, ("1.1", "2"), {"columns": columns})
    kept = [row for row, name in enumerate(column) if name != "None"]
    target = torch.tensor([int(column[row] == "2") for row in kept])
    parts = stratified(target, SPLIT_FRACTIONS, torch.Generator().manual_seed(0))
    for part, expected in zip((before.train, before.validation, before.test), parts, strict=True):
        assert part.origin.source_indices.tolist() == [kept[index] for index in expected.tolist()]
        assert torch.equal(part.target, target[expected])


# What is missing.


def test_rows_without_a_class_are_left_out_wherever_they_are(tmp_path):
    content = rows(
        "x,part,y", lambda i: f"{i / 3:.2f},{'test' if i % 4 == 0 else 'train'},{'' if i in (3, 4) else 'ab'[i % 2]}"
    )
    splits = splits_of(written(tmp_path, content), split="part")
    assert len(splits.test) == 9
    assert splits.notes[:2] == ("2 classes in 'y': a (19 rows), b (19).", "2 rows have no 'y' and are left out.")
    task = tasks.create("table", data=written(tmp_path, labelled(["a", "b"], 20)), target="y")
    splits = task.splits(0)
    read = task.read_examples(
        Path(written(tmp_path, "x,y\n1,b\n2,\n3,a\n", "new.csv")), splits.preprocessing, splits.classes, None
    )
    assert read.target.tolist() == [1, 0]
    assert read.features.shape == (2, 1)
    assert read.notes == ("1 row has no 'y' and is left out.",)
    with pytest.raises(UserError, match="is empty in every row"):
        task.read_examples(Path(written(tmp_path, "x,y\n1,\n", "no.csv")), splits.preprocessing, splits.classes, None)


def test_the_note_names_the_words_taken_for_missing(tmp_path):
    content = rows(
        "age,town,grade,y",
        lambda i: (
            f"{'?' if i == 7 else 'n/a' if i % 10 == 4 else '-' if i == 9 else i / 2},"
            f"{'None' if i % 8 == 1 else ('Ulm', 'Bonn')[i % 2]},{'?-A'[i % 3]},{'ab'[i % 2]}"
        ),
    )
    splits = splits_of(written(tmp_path, content))
    told = " ".join(splits.notes)
    assert "'age' lacks 6 values (taken for missing: 4 'n/a', 1 '?', 1 '-', the first in row 5)" in told
    assert "'town' lacks 5 values (taken for missing: 5 'None', the first in row 2)" in told
    columns = {column["name"]: column for column in splits.preprocessing["columns"]}
    assert columns["age"]["missing"]
    assert columns["town"]["categories"] == ["(missing)", "Bonn", "Ulm"]
    assert columns["grade"]["categories"] == ["-", "?", "A"]


def test_49_temperatures_stay_numbers_and_mixtures_are_told(tmp_path):
    content = rows(
        "t,u,x,y",
        lambda i: f"{20 + i % 12 / 2 if i < 49 else '-'},{i % 4 if i < 49 else 'low'},{i / 3:.2f},{'ab'[i % 2]}",
        60,
    )
    splits = splits_of(written(tmp_path, content))
    kinds = {column["name"]: column["kind"] for column in splits.preprocessing["columns"]}
    assert kinds == {"t": "number", "u": "category", "x": "number"}
    assert (
        "Column 'u' is taken for categories (49 of its 60 values are numbers; the first that is not is 'low' in row "
        "50)." in splits.notes
    )


def test_a_text_among_numbers_is_told_with_a_cure(tmp_path):
    content = rows("t,y", lambda i: f"{'cold' if i == 3 else i},{'ab'[i % 2]}")
    with pytest.raises(
        UserError, match=r"in row 4 of column 't', but got 'cold'; the cell is empty where .* --leave-out"
    ):
        splits_of(written(tmp_path, content))


@pytest.mark.parametrize("value", ["1e300", "-1e39", "1e400"])
def test_numbers_that_are_no_float32_are_named(tmp_path, value):
    content = rows("t,y", lambda i: f"{value if i == 5 else i},{'ab'[i % 2]}")
    with pytest.raises(UserError, match=f"in row 6 of column 't', but got '{value}'"):
        splits_of(written(tmp_path, content))
    task = tasks.create("table", data=written(tmp_path, rows("t,y", lambda i: f"{i / 1e9},{'ab'[i % 2]}")), target="y")
    with pytest.raises(UserError, match="in row 2 of column 't', but got '1e38'"):
        task.read_inputs(Path(written(tmp_path, "t\n1\n1e38\n", "new.csv")), task.splits(0).preprocessing)


# Dates.

DAYS = [datetime.date(2019 + i % 3, 1 + i % 12, 1 + i % 28) for i in range(40)]


@pytest.mark.parametrize(
    "column",
    [
        [str(day) for day in DAYS],
        [f"{day}T08:30:00Z" for day in DAYS],
        [f"{day:%d.%m.%Y}" for day in DAYS],
        [f"{day:%m/%d/%y}" for day in DAYS],
        [f"{day:%d %b %Y}" for day in DAYS],
        DAYS,
        pd.to_datetime(DAYS),
        pd.to_datetime(DAYS).tz_localize("UTC"),
    ],
)
def test_dates_of_any_type_are_refused(tmp_path, column):
    pd.DataFrame({"when": column, "x": np.arange(40) / 3, "y": ["a", "b"] * 20}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"The column 'when' holds dates .*dates=expand.* --leave-out 'when'"):
        splits_of(str(tmp_path / "a.parquet"))
    assert column_names(splits_of(str(tmp_path / "a.parquet"), leave_out=["when"])) == ["x"]


@pytest.mark.parametrize("column", [[str(day) for day in DAYS], DAYS, pd.to_datetime(DAYS)])
def test_dates_become_year_month_and_day(tmp_path, column):
    frame = pd.DataFrame({"when": column, "x": np.arange(40) / 3, "y": ["a", "b"] * 20})
    frame.loc[3, "when"] = None
    frame.to_parquet(tmp_path / "a.parquet")
    task = tasks.create("table", data=str(tmp_path / "a.parquet"), target="y", dates="expand")
    splits = task.splits(0)
    columns = splits.preprocessing["columns"]
    assert [column.get("part") for column in columns] == ["year", "month", "day", None]
    read = task.read_inputs(Path(written(tmp_path, "when,x\n2020-11-09,1\n,1\n", "new.csv")), splits.preprocessing)
    expected = [(value - c["mean"]) / c["scale"] for value, c in zip((2020, 11, 9), columns, strict=False)]
    torch.testing.assert_close(read[0, :6], torch.tensor([expected[0], 0, expected[1], 0, expected[2], 0]))
    assert read[1, :6].tolist() == [0, 1] * 3
    assert list(task.samples(splits.train, splits.preprocessing)[0]) == ["when", "x"]
    with pytest.raises(UserError, match=r"a date such as 2024-12-31 in row 1 .* but got '09\.11\.2020'"):
        task.read_inputs(Path(written(tmp_path, "when,x\n09.11.2020,1\n", "new.csv")), splits.preprocessing)


def test_the_option_dates_is_checked(tmp_path):
    with pytest.raises(UserError, match="option `dates` to be expand, but got 'year'"):
        tasks.create("table", data="a.csv", target="y", dates="year")


# Names of columns, and columns that are no features.


def test_two_columns_of_one_name_are_refused_in_every_format(tmp_path):
    told = r"has two columns named '(y|x_0)'"
    with pytest.raises(UserError, match=told):
        splits_of(written(tmp_path, "y,x, y\n" + "a,1,a\nb,2,b\n" * 10))
    arrays = [pa.array(["a", "b"] * 10), pa.array(["a", "b"] * 10)]
    pyarrow.parquet.write_table(pa.Table.from_arrays(arrays, names=["y", "y"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=told):
        splits_of(str(tmp_path / "a.parquet"))
    np.savez(tmp_path / "a.npz", x=np.ones((20, 2)), x_0=np.ones(20), y=np.arange(20) % 2)
    with pytest.raises(UserError, match=told):
        splits_of(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("first", [0, 1])
def test_a_column_without_a_name_that_counts_is_left_out(tmp_path, first):
    splits = splits_of(written(tmp_path, rows(",x,y", lambda i: f"{first + i},{i * 7 % 5},{'ab'[i % 2]}")))
    assert column_names(splits) == ["x"]
    assert "Column 'Unnamed: 0' has no name and numbers the rows: it is left out." in splits.notes
    # One that holds values is a feature.
    assert column_names(splits_of(written(tmp_path, rows(",x,y", lambda i: f"{i % 9},{i % 5},{'ab'[i % 2]}")))) == [
        "Unnamed: 0",
        "x",
    ]


def test_identifiers_are_named_and_left_out_on_demand(tmp_path):
    path = written(tmp_path, rows("id,x,y", lambda i: f"{900 + 3 * i},{i % 5},{'ab'[i % 2]}"))
    splits = splits_of(path)
    assert column_names(splits) == ["id", "x"]
    assert any("'id' has another whole number in every row" in n and "--leave-out 'id'" in n for n in splits.notes)
    task = tasks.create("table", data=path, target="y", leave_out=["id"])
    assert task.options["leave_out"] == ["id"]
    assert column_names(task.splits(0)) == ["x"]
    assert not any("'id'" in note for note in task.splits(0).notes)
    with pytest.raises(UserError, match="Unknown column 'ix'"):
        splits_of(path, leave_out=["ix"])
    with pytest.raises(UserError, match="'y' holds the classes, so --leave-out does not apply"):
        splits_of(path, leave_out=["y"])


def test_free_text_is_said_to_be_no_feature(tmp_path):
    content = rows(
        "review,code,x,y", lambda i: f"{i if i % 5 == 0 else f'a fine film {i}'},A/{i},{i % 7},{'ab'[i % 2]}"
    )
    notes = splits_of(written(tmp_path, content)).notes
    assert "Column 'review' holds free text, which is no feature, and is left out." in notes
    assert "Column 'code' differs in nearly every row and is left out." in notes


# Values that training never saw.


def test_values_never_seen_in_training_are_counted(tmp_path):
    content = rows("flag,age,z,y", lambda i: f"{'uv'[i // 2 % 2]},{i / 2},{'' if i == 0 else i % 3},{'ab'[i % 2]}")
    task = tasks.create("table", data=written(tmp_path, content), target="y")
    splits = task.splits(0)
    new = Path(written(tmp_path, "flag,age,z,y\n" + "w,1,,a\n" * 60 + "w,,1,a\n" * 60, "new.csv"))
    told = (
        "120 of 120 values of 'flag' were never seen in training ('w' in row 1): no category is set.",
        "60 of 120 values of 'age' are missing, and none was in training: the training mean stands for them.",
    )
    assert task.input_notes(new, splits.preprocessing) == told
    assert task.read_examples(new, splits.preprocessing, splits.classes, None).notes == told
    assert splits.test.notes == ()


def test_a_test_part_counts_what_training_never_saw(tmp_path):
    content = rows(
        "town,part,y",
        lambda i: f"{'Rome' if i == 36 else 'uv'[i // 2 % 2]},{'test' if i > 29 else 'train'},{'ab'[i % 2]}",
    )
    assert splits_of(written(tmp_path, content), split="part").test.notes == (
        "1 of 10 values of 'town' were never seen in training ('Rome' in row 37): no category is set.",
    )


@pytest.mark.parametrize("training", [("True", "False"), ("true", "FALSE"), (True, False)])
def test_true_and_1_are_one_value_of_a_column_that_was_boolean(tmp_path, training):
    frame = pd.DataFrame({"flag": [training[i // 2 % 2] for i in range(40)], "y": ["a", "b"] * 20})
    frame.to_parquet(tmp_path / "a.parquet")
    task = tasks.create("table", data=str(tmp_path / "a.parquet"), target="y")
    columns = task.splits(0).preprocessing
    assert columns["columns"][0]["categories"] == ["False", "True"]
    new = Path(written(tmp_path, "flag\nTrue\ntrue\n1\n1.0\nFALSE\n0\nmaybe\n", "new.csv"))
    assert task.read_inputs(new, columns).tolist() == [[0, 1]] * 4 + [[1, 0]] * 2 + [[0, 0]]
    assert task.input_notes(new, columns) == (
        "1 of 7 values of 'flag' were never seen in training ('maybe' in row 7): no category is set.",
    )


def test_minus_zero_is_zero():
    assert MEASURES["nll"].value(-0.0) == "0.0000"
    assert MEASURES["nll"].signed(-0.0) == "+0.0000"
    assert MEASURES["accuracy"].value(-0.0) == "0.00%"
