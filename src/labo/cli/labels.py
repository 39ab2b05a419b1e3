"""`labo labels`: training examples whose labels are probably wrong."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labo.cli import options
from labo.errors import UserError

if TYPE_CHECKING:
    from labo.experiment.label_issues import LabelIssues


def labels(
    run: options.Run,
    folds: Annotated[
        int, typer.Option(help="Cross-fit with this many networks, each trained without the fold that it scores.")
    ] = 0,
    top: Annotated[int, typer.Option(help="How many examples to print, and to show with images on the page.")] = 20,
    beta: Annotated[
        float | None, typer.Option(help="Beta of the label q*.", show_default="the run's for LABO, else 2")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the ranking of all training examples to this .csv file.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="Folds to train in parallel, one thread each.", show_default="the cores, or 2 on a GPU")
    ] = 0,
    no_samples: options.NoSamples = False,
) -> None:
    """Find training examples whose labels are probably wrong.

    Ranks examples by how strongly the label q* disagrees with the given class, and writes labels.html and labels.json
    into the run's folder; `labo report` of a comparison shows them too. A run with a memory (labo[prior=memory], elr)
    uses the memory instead of q*, without running a network. Finished folds are kept, so the same command resumes an
    interrupted search.
    """
    if output is not None and output.suffix.lower() != ".csv":
        raise UserError(f"Expected --output to be a .csv file, but got '{output}'.")
    for name, value in (("top", top - 1), ("folds", folds), ("jobs", jobs)):
        if value < 0:
            raise UserError(f"Expected --{name} of at least {int(name == 'top')}, but got {value + (name == 'top')}.")
    from labo.experiment import label_issues, saved_run
    from labo.experiment.progress import ConsoleProgress
    from labo.records import lock

    loaded = saved_run.load(run)
    loaded.require_kind("classification", "labels")
    with lock.hold(loaded.folder), ConsoleProgress() as progress:
        issues = label_issues.find(loaded, count=folds, beta=beta, processes=jobs, reporter=progress)
        _write_and_print(issues, top, output, samples=not no_samples)


def _write_and_print(issues: LabelIssues, top: int, output: Path | None, *, samples: bool) -> None:
    from labo.records.storage import write_object, write_text
    from labo.records.trial import LABEL_ISSUES, LABEL_ISSUES_PAGE
    from labo.report import label_issues

    folder = issues.run.folder
    summary = issues.summary(top, samples=samples)
    write_object(folder / LABEL_ISSUES, summary)
    page = write_text(folder / LABEL_ISSUES_PAGE, label_issues.page(summary, samples=samples))
    if output is not None:
        _write_csv(issues, output)
    print(_table(summary["top"]))
    print(f"\n{label_issues.lead(summary)}")
    if not issues.folds and not issues.memory:
        print("A network agrees with labels that it has memorized; --folds 5, or a run of few epochs, finds more.")
    print(f"\nPage: {page}" + ("" if output is None else f"\nAll examples: {output}"))


def _write_csv(issues: LabelIssues, path: Path) -> None:
    from labo.records.storage import replacing

    try:
        with replacing(path, newline="") as file:
            writer: Any = None
            for line in issues.lines():
                if writer is None:
                    writer = csv.DictWriter(file, line.keys(), lineterminator="\n")
                    writer.writeheader()
                cells = (f"{value:.6g}" if isinstance(value, float) else value for value in line.values())
                writer.writerow(dict(zip(line, cells, strict=True)))
    except OSError as error:
        raise UserError(f"Cannot write '{path}': {error.strerror or error}.") from error


def _table(lines: list[dict[str, Any]]) -> str:
    """One line per example, aligned for a terminal."""
    injected = any("before" in line for line in lines)
    rows = [["", "example", "given", "other", "q* given", "q* other", *(["injected"] if injected else [])]]
    for line in lines:
        row = [str(line["rank"]), line["example"], line["given"], line["other"]]
        row += [f"{line['q_given']:.4f}", f"{line['q_other']:.4f}"]
        if injected:
            row.append(f"was {line['before']}" if line["before"] != line["given"] else "")
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in padded)
