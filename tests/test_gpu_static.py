"""Every Triton kernel compiles for a GPU, here without one, and costs what it may; the script for a device runs."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest

from labo.kernels.triton import interpreted
from launch import run_python

triton = pytest.importorskip("triton")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What benchmarks/gpu_static.py writes, in a process where Triton compiles and does not interpret."""
    if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm").exists():
        pytest.skip("this triton has no disassembler")
    path = tmp_path_factory.mktemp("static") / "static.csv"
    script, source = ROOT / "benchmarks" / "gpu_static.py", str(ROOT / "src")
    run_python(script, "--quick", "--output", path, PYTHONPATH=source, TRITON_INTERPRET=None)
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_kernel_compiles_in_every_form(table):
    assert {line["kernel"] for line in table} == {
        "long_rows", "short_rows", "sum_parts", "write_parts", "scale_gradient",
    }  # fmt: skip
    for kernel in ("long_rows", "short_rows"):
        forms = {(line["beta"], line["prior"]) for line in table if line["kernel"] == kernel}
        assert len(forms) == 9


def test_nothing_spills_and_no_loop_has_a_shuffle_or_a_barrier(table):
    for line in table:
        assert (line["stack"], line["local"]) == ("0", "0"), line
        assert (line["shuffles_in_loops"], line["barriers_in_loops"]) == ("0", "0"), line


@pytest.mark.parametrize(("dtype", "instructions"), [("float32", 20), ("bfloat16", 23)])
def test_long_rows_at_beta_2_issue_few_instructions(table, dtype, instructions):
    of_line = ("long_rows", dtype, "2", "")
    (line,) = (line for line in table if tuple(line[key] for key in ("kernel", "dtype", "beta", "extra")) == of_line)
    assert float(line["instructions"]) <= instructions
    assert float(line["mufu"]) <= 2.2


def test_long_rows_leave_room_for_many_warps(table):
    for line in table:
        if line["kernel"] in ("long_rows", "sum_parts", "write_parts") and not line["extra"]:
            assert int(line["registers"]) <= 64, line


def test_options_that_are_off_by_default_compile(table):
    compiled = {line["kernel"] for line in table if line["extra"] == "all"}
    assert compiled == {"long_rows", "short_rows", "sum_parts", "write_parts"}


@pytest.mark.skipif(not interpreted(), reason="a device runs the script itself; here the interpreter of Triton does")
def test_the_script_for_a_device_runs_its_sections(monkeypatch, tmp_path):
    """On small sizes, without worker processes and clocks of a device."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    gpu, checks = importlib.import_module("gpu"), importlib.import_module("gpu_checks")
    monkeypatch.setattr(checks, "EXTRA_SIZES", ((6, 5), (2, 8200)))  # held rows, and rows in parts
    for name, count in (("PUBLIC_ROWS", 6), ("LAYER_ROWS", 6), ("LAYER_CLASSES", 50)):
        monkeypatch.setattr(checks, name, count)
    monkeypatch.setattr(gpu, "OPTION_LOGITS", ((4, 10, "bfloat16"),))
    monkeypatch.setattr(gpu, "OPTION_LAYERS", ((4, 10, 3, "float32"),))
    cases, options = checks.correctness_cases(), checks.option_cases()
    listed = {
        "correctness": [case for case in cases if case["rows"] == 9 or case["options"] in checks.CHECKS][::-6],
        "options": [case for case in options if case["beta"] == 2.0 and case["dtype"] == "float32"][::2],
    }
    monkeypatch.setattr(
        gpu, "in_workers", lambda section, *_: [checks.run_case(section, case) for case in listed[section]]
    )
    path = tmp_path / "gpu.csv"
    chosen = [argument for section in (*listed, "options-cost") for argument in ("--section", section)]
    monkeypatch.setattr("sys.argv", ["gpu.py", *chosen, "--output", str(path)])
    gpu.main()
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    checked = [line for line in lines if line["section"] != "options-cost"]
    assert [line for line in checked if line["ok"] != "1"] == []
    assert {line["options"] for line in checked} >= {"statistics", [*checks.EXTRAS][-1], "public, all options"}
    timed = [line["name"] for line in lines if line["section"] == "options-cost"]
    assert timed == 2 * ["labo", "z_loss", "softcap", "statistics", "row_weight", [*checks.EXTRAS][-1]]
    assert all(line["ratio"] for line in lines[-len(timed) :])
