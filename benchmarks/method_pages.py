"""docs/methods/: a page for each member, from its docstring, what it costs, and the labels that it made on digits.

labo compare digits --methods all --seeds 10 --settings-per-method 3 --output runs/digits
python benchmarks/method_pages.py runs/digits docs/methods
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from labo import regularizers
from labo.report import figures, runs
from labo.report.svg import render, standalone
from labo.wording import byte_size

_SECTIONS = ("Args", "Needs", "When", "Raises", "Source", "Example")


def page(name: str, picture: bool) -> str:
    """The page of a member in Markdown; `picture` says whether there is one of its labels."""
    found = regularizers.describe(name)
    defaults = regularizers.describe(name, {"prior": "memory"}).defaults | found.defaults
    text, sections = _parts(regularizers.document(name).partition("\n\n")[2])
    lines = [f"# {name}", "", f"{found.summary[0].upper()}{found.summary[1:]}.", "", text]
    if "Args" in sections:
        lines += ["", "## Options", "", *_options(sections["Args"], defaults)]
    for title, key in (("What it needs from training", "Needs"), ("When to use it", "When")):
        if key in sections:
            lines += ["", f"## {title}", "", sections[key][0].upper() + sections[key][1:]]
    lines += ["", "## Cost", "", *_cost(name)]
    if picture:
        lines += ["", "## The labels it made on digits", "", _CAPTION, "", f"![Labels of {name}](figures/{name}.svg)"]
    if "Source" in sections:
        lines += ["", "## Source", "", sections["Source"]]
    return "\n".join(lines) + "\n"


_MEASURED = (
    "Measured by `labo methods --measure` with the defaults, on one thread. `none` is this package's own plain "
    "cross-entropy, which is faster than PyTorch's; beside itself it was measured at 0.9, so 10% are noise."
)
_CAPTION = (
    "Rows are the true class of a validation example; colour says how much more than an even share of the mass on the "
    "other classes each of them gets, on a scale of its own. Mean over all seeds of `labo compare digits`, with the "
    "settings chosen there."
)


def _parts(text: str) -> tuple[str, dict[str, str]]:
    """(what stands before the sections, the sections by name)."""
    pieces = re.split(rf"^({'|'.join(_SECTIONS)}):", text, flags=re.MULTILINE)
    sections = {key: _unindented(body) for key, body in zip(pieces[1::2], pieces[2::2], strict=True)}
    return pieces[0].strip(), sections


def _unindented(text: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in text.strip("\n").splitlines()).strip()


def _options(text: str, defaults: dict[str, object]) -> list[str]:
    """The lines `name: meaning` as a list, with the defaults."""
    joined = re.sub(r"\n\s+", " ", text)
    lines = []
    for line in joined.splitlines():
        names, _, meaning = line.partition(": ")
        known = [name for name in names.split(", ") if name in defaults]
        shown = ", ".join(f"`{name}={'None' if defaults[name] is None else defaults[name]}`" for name in known)
        lines.append(f"- {shown or names}: {meaning}")
    return lines


def _cost(name: str) -> list[str]:
    """What was measured, as a table."""
    known = regularizers.costs().get(name, {})
    lines = ["| | a training step, × that of `none` | kept between steps |", "|---|---|---|"]
    lines += [f"| {key} | {cost['compute']} | {byte_size(int(cost['state_bytes']))} |" for key, cost in known.items()]
    return [*lines, "", _MEASURED]


def index() -> str:
    """The list of all pages."""
    opening = "After reading this page you can find the page of a member: its formula, options, cost and use."
    lines = ["# The members", "", opening, "", "One page each, made by `benchmarks/method_pages.py`.", ""]
    lines += [f"- [{name}]({name}.md): {regularizers.describe(name).summary}" for name in regularizers.available()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write all pages, and the pictures of the comparison in the first argument."""
    comparison, target = (Path(text) for text in sys.argv[1:])
    (target / "figures").mkdir(parents=True, exist_ok=True)
    labels, classes = {}, []
    for name in regularizers.available():
        files = [json.loads(path.read_text()) for path in sorted(comparison.glob(f"digits/{name}/*/figures.json"))]
        if files and (found := runs.mean_labels(files)):
            labels[name], classes = found, files[0]["classes"]
    for name in regularizers.available():
        if name in labels:
            # A scale of its own each: those that differ by factors would leave the others blank.
            figure = figures.label_map(name, labels[name], classes, figures.common_reach([labels[name]]))
            svg = standalone(render(figure, name, f"Labels of {name}"))
            (target / "figures" / f"{name}.svg").write_text(svg, encoding="utf-8")
        known = (target / "figures" / f"{name}.svg").exists()  # perhaps of an earlier comparison
        (target / f"{name}.md").write_text(page(name, known), encoding="utf-8")
    (target / "README.md").write_text(index(), encoding="utf-8")


if __name__ == "__main__":
    main()
