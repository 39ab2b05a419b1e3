"""The layout of the package: imports have no circles, and each file of a record is named in one place."""

from __future__ import annotations

import ast
from pathlib import Path

import labo
from labo.records import comparison, trial
from launch import run_python

ROOT = Path(labo.__file__).parent
MODULES = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path for path in ROOT.rglob("*.py")}
MODULES = {name.removesuffix(".__init__"): path for name, path in MODULES.items()}
# The files and folders that the records know, by the constants that name them.
FILES = {
    value
    for module, names in {
        trial: (
            "RUN RECORD CURVE ERROR WEIGHTS FIGURES MEMORY HELD_OUT HYPOTHESES REFERENCES LABEL_ISSUES "
            "LABEL_ISSUES_PAGE BEST_WEIGHTS"
        ),
        comparison: "RESULTS TUNING COMPARISON PLAN SHIFTS BEAMS BOOTSTRAP",
    }.items()
    for value in (getattr(module, name) for name in names.split())
}


def imported(name: str) -> set[str]:
    """The modules of labo that a module imports, inside functions too; those of the package itself are no names."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {each if each in MODULES else str(node.module) for each in full}
    return found & MODULES.keys() - {name, "labo"}


def test_no_file_imports_a_file_that_imports_it():
    graph = {name: imported(name) for name in MODULES}
    assert "labo.records.storage" in graph["labo.records.trial"]
    assert "labo.experiment.run_trial" in graph["labo.experiment.executor"]  # an import in a function
    # Without circles, modules can be taken away one after the other, each when nothing that is left imports it.
    left = dict(graph)
    while free := left.keys() - set().union(*left.values()):
        left = {name: names for name, names in left.items() if name not in free}
    assert not left, f"these import each other: {', '.join(sorted(left))}"


def test_a_file_of_the_records_is_named_once():
    assert len(FILES) == 20
    named: dict[str, list[str]] = {name: [] for name in FILES}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in FILES:
                named[str(node.value)].append(module)
    where = {file: modules for file, modules in named.items() if len(modules) != 1}
    assert not where, f"these are not named once: {where}"
    assert {modules[0] for modules in named.values()} == {"labo.records.trial", "labo.records.comparison"}


def test_records_are_read_without_torch_and_pandas():
    code = (
        "import sys, labo.records.comparison as records; records.read(sys.argv[1]);"
        "print([name for name in ('torch', 'pandas', 'numpy') if name in sys.modules])"
    )
    demo = Path(__file__).parents[1] / "results" / "demo"
    assert run_python("-c", code, demo).stdout.strip() == "[]"
