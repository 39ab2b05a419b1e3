"""Small made copies of tables that people start with, quirks included, from the command line as a user types it."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import forget_digests
from labo.cli import main

Run = Callable[..., tuple[int, str, str]]
COUNT = 80


@pytest.fixture
def labo(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line, in this process and an empty folder: (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(command: str) -> tuple[int, str, str]:
        status = main(shlex.split(command))
        out, err = capsys.readouterr()
        return status, out, err

    return run


def lines(header: str, cells: Callable[[int, Any], str], *, start: str = "") -> str:
    draw = np.random.default_rng(0)
    return start + "\n".join([header, *(cells(row, draw) for row in range(COUNT))]) + "\n"


def titanic(row: int, draw: Any) -> str:
    """Identifiers, names with commas and quotes, tickets of which half are numbers, ages and cabins that lack."""
    age = "" if row % 5 == 0 else f"{draw.integers(1, 70)}"
    ticket = f"{1000 + row}" if row % 2 else f"A/5 {row}"
    name = f'"Doe, Mr. J. ""{row}"""'
    return f"{row + 1},{row * 7 % 3 % 2},{1 + row % 3},{name},{('male', 'female')[row % 2]},{age},{ticket},"


def adult(row: int, draw: Any) -> str:
    """A space after every comma, and ? for what is missing, among numbers as among words."""
    work = "?" if row % 9 == 0 else ("Private", "State-gov")[row % 2]
    hours = "?" if row % 20 == 3 else draw.integers(20, 60)
    return f"{draw.integers(17, 90)}, {work}, {draw.normal() * 1e5:.0f}, {hours}, {('<=50K', '>50K')[row * 5 % 3 % 2]}"


def penguins(row: int, draw: Any) -> str:
    """Row numbers under no name, NA for what is missing, and a point for an unknown sex."""
    mass = "NA" if row == 3 else draw.integers(3000, 6000)
    species = ("Adelie", "Gentoo", "Chinstrap")[row % 3]
    return f'"{row + 1}","{species}",{draw.normal(40, 5):.1f},{mass},{("male", "female", "NA", ".")[row % 4]}'


def wine(row: int, draw: Any) -> str:
    """Semicolons, and the classes are grades."""
    return f"{draw.normal(8, 1):.1f};{draw.normal(0.5, 0.1):.2f};{(5, 6, 7)[row % 3]}"


def european(row: int, draw: Any) -> str:
    """Semicolons, decimal commas, and codes with leading zeros as classes."""
    return f"{draw.normal(8, 1):.3f};{draw.normal(0, 9):.2f}".replace(".", ",") + f";{('007', '07', '010')[row % 3]}"


def sleep(row: int, draw: Any) -> str:
    """A class called None, which more rows have than any other."""
    disorder = ("None", "Sleep Apnea", "None", "Insomnia", "None")[row % 5]
    return f"{row + 1},{draw.normal(7, 1):.1f},{('Normal', 'Overweight')[row % 2]},{disorder}"


TABLES = {
    "titanic": (lines("PassengerId,Survived,Pclass,Name,Sex,Age,Ticket,Cabin", titanic), "Survived", {
        "classes": ["0", "1"],
        "columns": ["Pclass", "Sex", "Age"],
        "told": ["'Name' holds free text", "'Age' lacks 16 values",
                 "'Ticket' differs in nearly every row and is left out (40 of",
                 "'Cabin' has no value", "2 classes in 'Survived': 0 ("],
    }),
    "adult": (lines("age, workclass, fnlwgt, hours-per-week, income", adult), "income", {
        "classes": ["<=50K", ">50K"],
        "columns": ["age", "workclass", "fnlwgt", "hours-per-week"],
        "told": ["'hours-per-week' lacks 4 values (taken for missing: 4 '?', the first in row 4)",
                 "2 classes in 'income': <=50K ("],
    }),
    "penguins": (lines('"","species","bill length","mass","sex"', penguins), "species", {
        "classes": ["Adelie", "Chinstrap", "Gentoo"],
        "columns": ["bill length", "mass", "sex"],
        "told": ["'Unnamed: 0' has no name and numbers the rows",
                 "'mass' lacks 1 value (taken for missing: 1 'NA', the first in",
                 "'sex' lacks 20 values (taken for missing: 20 'NA'", "3 classes in 'species': Adelie (27 rows), "],
    }),
    "wine": (lines('"fixed acidity";"volatile acidity";"quality"', wine), "quality", {
        "classes": ["5", "6", "7"],
        "columns": ["fixed acidity", "volatile acidity"],
        "told": ["3 classes in 'quality': 5 (27 rows), 6 (27), 7 (26)."],
    }),
    "european": (lines("a;b;code", european, start="\ufeffsep=;\n"), "code", {
        "classes": ["007", "07", "010"],
        "columns": ["a", "b"],
        "told": ["Commas are read as decimal marks in 'a' and 1 more column;", "007 (27 rows), 07 (27), 010 (26)."],
    }),
    "sleep": (lines("Person ID,Sleep,BMI,Disorder", sleep), "Disorder", {
        "classes": ["Insomnia", "None", "Sleep Apnea"],
        "columns": ["Sleep", "BMI"],
        "told": ["3 classes in 'Disorder': Insomnia (16 rows), None (48), Sleep Apnea (16)."],
    }),
}  # fmt: skip
LEAVE_OUT = {"titanic": "PassengerId", "sleep": "Person ID"}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_trained_evaluated_and_predicted(labo: Run, tmp_path: Path, name: str):
    content, target, expected = TABLES[name]
    path = tmp_path / f"{name}.csv"
    path.write_text(content, encoding="utf-8")
    leave_out = LEAVE_OUT.get(name)
    command = f"train table --data {path.name} --target {target} --epochs 1 --output run"
    status, out, err = labo(command + (f" --leave-out '{leave_out}'" if leave_out else ""))
    assert status == 0, err
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["classes"] == expected["classes"]
    assert [column["name"] for column in run["preprocessing"]["columns"]] == expected["columns"]
    assert run["task_options"].get("leave_out") == ([leave_out] if leave_out else None)
    status, out, err = labo("evaluate run --json --data " + path.name)
    assert status == 0, err
    assert sum(entry["examples"] for entry in json.loads(out)["classes"]) == COUNT
    status, out, err = labo("predict run " + path.name)
    assert status == 0, err
    predicted = [row["prediction"] for row in csv.DictReader(out.splitlines())]
    assert len(predicted) == COUNT
    assert set(predicted) <= set(expected["classes"])  # as the file has them: to be joined back


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_compared_and_what_was_done_with_them_is_told(labo: Run, tmp_path: Path, name: str):
    content, target, expected = TABLES[name]
    (tmp_path / f"{name}.csv").write_text(content, encoding="utf-8")
    status, out, err = labo(
        f"compare table --data {name}.csv --target {target} --methods none,label_smoothing --seeds 1 --epochs 1 "
        "--settings-per-method 1 --jobs 1 --output out"
    )
    assert status == 0, err
    told = " ".join(err.split())
    for sentence in expected["told"]:
        assert sentence in told
    assert "label_smoothing" in out


def test_identifiers_are_named_by_the_comparison(labo: Run, tmp_path: Path):
    (tmp_path / "titanic.csv").write_text(TABLES["titanic"][0])
    err = labo("train table --data titanic.csv --target Survived --epochs 1 --output run")[2]
    assert "leave it out with --leave-out 'PassengerId'" in " ".join(err.split())


def test_a_separator_is_recorded_and_can_be_told_anew(labo: Run, tmp_path: Path):
    header, *body = (line.replace(";", ":").replace('"', "") for line in TABLES["wine"][0].splitlines())
    (tmp_path / "colons.csv").write_text("\n".join([header, *body]) + "\n")
    (tmp_path / "new.csv").write_text(
        "\n".join([header.replace(":", "^"), *(line.replace(":", "^") for line in body[:5])])
    )
    command = "train table --data colons.csv --target quality --epochs 1 --output run"
    assert labo(command)[0] == 2
    assert labo(command + " --separator : --decimal .")[0] == 0
    options = json.loads((tmp_path / "run" / "run.json").read_text())["task_options"]
    assert (options["separator"], options["decimal"]) == (":", ".")
    assert len(labo("predict run colons.csv")[1].splitlines()) == 1 + COUNT
    assert "lacks the column" in labo("predict run new.csv")[2]
    assert len(labo("predict run new.csv --separator ^")[1].splitlines()) == 6
    assert labo("evaluate run --data new.csv --separator ^")[0] == 0
    assert "require --data" in labo("evaluate run --separator ^")[2]
    assert "Use --separator : instead of --option separator=:" in labo(f"{command} --option separator=:")[2]
    assert "Task 'digits' takes no `leave_out`" in labo("train digits --leave-out x")[2]


def test_values_never_seen_are_counted_by_evaluate_and_predict(labo: Run, tmp_path: Path):
    (tmp_path / "penguins.csv").write_text(TABLES["penguins"][0])
    assert labo("train table --data penguins.csv --target species --epochs 1 --output run")[0] == 0
    new = "species,bill length,mass,sex\n" + "Adelie,40.5,4000,unknown\n" * 3 + ",40.5,NA,male\n"
    (tmp_path / "new.csv").write_text(new)
    told = "values of 'sex' were never seen in training ('unknown' in row 1): no category is set."
    status, out, err = labo("predict run new.csv")
    assert (status, err) == (0, f"3 of 4 {told}\n")
    assert len(out.splitlines()) == 5
    status, out, err = labo("evaluate run --data new.csv --json")
    assert (status, err) == (0, f"1 row has no 'species' and is left out.\n3 of 3 {told}\n")
    assert sum(entry["examples"] for entry in json.loads(out)["classes"]) == 3


def test_a_run_of_an_earlier_version_is_evaluated_as_it_was_trained(labo: Run, tmp_path: Path):
    """Its run.json has no rules and the names that classes had."""
    (tmp_path / "european.csv").write_text(TABLES["european"][0].replace("007", "7").replace("07", "12"))
    assert labo("train table --data european.csv --target code --epochs 1 --output run")[0] == 0
    forget_digests(tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "record.json").read_text())["metrics"]
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["classes"] == ["7", "010", "12"]
    run["classes"] = ["7", "10", "12"]
    del run["preprocessing"]["rules"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    status, out, err = labo("evaluate run --json")
    assert status == 0, err
    assert json.loads(out)["metrics"] == pytest.approx(metrics)
    status, out, err = labo("evaluate run --json --data european.csv")
    assert (status, [entry["examples"] for entry in json.loads(out)["classes"]]) == (0, [27, 26, 27]), err
