"""Tables as other programs write .csv: separators, decimal commas, ragged lines, empty lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labo import tasks
from labo.errors import UserError
from test_tables import column_names, labelled, rows, splits_of, written


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("start", ["", "\ufeff", "sep={}\n", "\ufeffsep={}\r\n"])
def test_separators_are_found(tmp_path, separator, start):
    path = written(tmp_path, start.format(separator) + labelled(["a", "b"], separator=separator))
    splits = splits_of(path)
    assert (splits.classes, column_names(splits), len(splits.train)) == (("a", "b"), ["x"], 7)


def test_commas_within_cells_do_not_decide(tmp_path):
    content = rows("name;x;y", lambda i: f"Doe, John;{i % 7};{'ab'[i % 2]}")
    assert column_names(splits_of(written(tmp_path, content))) == ["x"]
    content = rows('"a;b",x,y', lambda i: f'"{i % 3};{i % 2}",{i % 7},{"ab"[i % 2]}')
    assert column_names(splits_of(written(tmp_path, content))) == ["a;b", "x"]
    with pytest.raises(UserError, match="are cells between ',' and ';' alike: choose one with --separator"):
        splits_of(written(tmp_path, rows("a,b;y", lambda i: f"{i},{i};{'ab'[i % 2]}")))


def test_a_separator_can_be_told(tmp_path):
    path = written(tmp_path, labelled(["a", "b"], separator=":"))
    with pytest.raises(
        UserError, match=r"read as the one column 'x:y'; tell what separates its cells with --separator"
    ):
        splits_of(path)
    assert splits_of(path, separator=":").classes == ("a", "b")
    assert splits_of(written(tmp_path, labelled(["a", "b"], separator="  ")), separator="space").classes == ("a", "b")
    with pytest.raises(UserError, match="--separator to be one character, or tab or space, but got '::'"):
        splits_of(path, separator="::")


@pytest.mark.parametrize(("line", "cells"), [("5,6", 2), ("5,6,7,b", 4), ("5", 1)])
def test_ragged_lines_are_told_with_their_number(tmp_path, line, cells):
    content = "x,z,y\n" + "1,2,a\n\n3,4,b\n" * 20 + f"{line}\n1,2,a\n"
    with pytest.raises(UserError, match=f"Line 62 of .* has {cells} cells?, but its header has 3"):
        splits_of(written(tmp_path, content))
    content = 'sep=,\nx,z,y\n"1\n1",2,a\n' + f"{line}\n"
    with pytest.raises(UserError, match=f"Line 5 of .* has {cells} cells?, but its header has 3"):
        splits_of(written(tmp_path, content))


def test_a_quote_that_does_not_end_is_told_with_its_line(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read line 3 of '.*': unexpected end of data"):
        splits_of(written(tmp_path, 'x,y\n1,a\n2,"b\n3,a\n4,b\n'))


def test_decimal_commas_are_read_as_decimals(tmp_path):
    values = [f"{i % 7 - 3},{i % 4}5" for i in range(40)]
    path = written(tmp_path, rows("x;z;y", lambda i: f"{values[i]};{i % 5};{'ab'[i % 2]}"))
    task = tasks.create("table", data=path, target="y")
    splits: Any = task.splits(0)
    x, z = splits.preprocessing["columns"]
    indices = splits.train.origin.source_indices.tolist()
    assert x["mean"] == pytest.approx(np.mean([float(values[i].replace(",", ".")) for i in indices]))
    assert "decimal" not in z
    assert "Commas are read as decimal marks in 'x'; --decimal says otherwise." in splits.notes
    # A file of few rows could be read in two ways; the training table decides.
    read = task.read_inputs(Path(written(tmp_path, "x;z\n1,500;1\n", "new.csv")), splits.preprocessing)
    assert read[0, 0].item() == pytest.approx((1.5 - x["mean"]) / x["scale"], rel=1e-5)
    with pytest.raises(UserError, match=r"in row 1 of column 'x', but got '1\.500'"):
        task.read_inputs(Path(written(tmp_path, "x;z\n1.500;1\n", "new.csv")), splits.preprocessing)
    assert [column["name"] for column in splits_of(path, decimal=",").preprocessing["columns"]] == ["x", "z"]
    with pytest.raises(UserError, match="in row 1 of column 'x'"):
        splits_of(path, decimal=".")


def test_commas_of_thousands_are_no_decimals(tmp_path):
    path = written(tmp_path, rows("x,y", lambda i: f'"{i + 1},{i + 200}",{"ab"[i % 2]}'))
    with pytest.raises(
        UserError, match=r"The comma of '1,200' in row 1 of column 'x' may mark decimals or thousands: .*--decimal ,"
    ):
        splits_of(path)
    x = splits_of(path, decimal=",").preprocessing["columns"][0]
    assert 1 < x["mean"] < 42
    with pytest.raises(UserError, match=r"--decimal to be \. or , but got ';'"):
        splits_of(path, decimal=";")


def test_commas_in_a_class_stay(tmp_path):
    content = rows("x;y", lambda i: f"{i % 7},5;{('1,5', '2,5')[i % 2]}")
    assert splits_of(written(tmp_path, content)).classes == ("1,5", "2,5")


def test_an_empty_line_is_a_row_of_one_column_and_of_no_other(tmp_path):
    task = tasks.create("table", data=written(tmp_path, labelled(["a", "b"])), target="y")
    columns = task.splits(0).preprocessing
    one = Path(written(tmp_path, "x\n1\n\n3\n\n\n", "one.csv"))
    read = task.read_inputs(one, columns)
    assert (read[:, 0] == 0).tolist() == [False, True, False]
    assert task.input_notes(one, columns)[0].startswith("1 of 3 values of 'x' are missing")
    assert len(task.read_inputs(Path(written(tmp_path, "x,z\n1,1\n\n  \n3,1\n", "two.csv")), columns)) == 2


def test_space_around_a_cell_is_dropped(tmp_path):
    content = rows(" x , y ", lambda i: f" {i} ,{('a', ' a', 'a ', 'b')[i % 4]}")
    assert splits_of(written(tmp_path, content)).classes == ("a", "b")
