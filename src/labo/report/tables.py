"""The verdict as Markdown and as a table for the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from labo.records.comparison import Recorded
from labo.report import beams, bootstrap, protocol, shifts
from labo.report.gallery import Group
from labo.report.measures import Measure, p_text
from labo.report.verdict import BASELINE, BETTER, WORSE, Difference, MethodSummary, Summary, TaskSummary, finding

if TYPE_CHECKING:
    from rich.console import Group as RenderGroup

# What a terminal of 80 columns has no room for.
LEFT_TO_THE_PAGE = ("brier", "top5", "perplexity")
# What gives way where accuracy on shifted inputs was measured, or chrF.
GIVES_WAY = ("ece",)
NARROW = {"accuracy_shifted": "Acc., shifted"}
MARKS = {BETTER: "▲", WORSE: "▼", BASELINE: "·"}


def cell(measure: Measure, summary: MethodSummary) -> tuple[str, str]:
    """(mean, half width) of one measure in words; the second is empty with a single seed."""
    found = summary.estimates[measure.key]
    return measure.value(found.mean), measure.spread(found.half_width)


def best(measure: Measure, task: TaskSummary) -> set[str]:
    """The methods with the best mean of a measure, by what is shown; none where fewer than two have a value."""
    means = {summary.method: summary.estimates[measure.key].mean for summary in task.methods}
    shown = {name: round(mean * measure.factor, measure.digits) for name, mean in means.items() if mean is not None}
    if len(shown) < 2:
        return set()
    top = max(shown.values()) if measure.higher_is_better else min(shown.values())
    return {name for name, value in shown.items() if value == top}


def seeds_text(summary: MethodSummary) -> str:
    """`8`, or `6 (2 failed)`."""
    return f"{summary.finished} ({len(summary.failures)} failed)" if summary.failures else str(summary.finished)


def markdown(recorded: Recorded, summary: Summary, pictures: dict[str, list[Group]]) -> str:
    """The whole report as GitHub Markdown; figures are linked as figures/<name>.svg."""
    parts = ["# " + ", ".join(_escape(task.task) for task in summary.tasks) + ": which method is better"]
    parts += ["\n".join(f"- {_escape(overall.sentence)}" for overall in summary.overall)] if summary.overall else []
    for task in summary.tasks:
        parts += [f"## {_escape(task.task)}", f"**{_escape(finding(task))}**"]
        parts += [sentences(task), leaderboard(task), differences(task)]
        parts += [*_shifted(recorded, task), *_bootstrap(recorded, task), *_beams(recorded, task)]
        for group in pictures.get(task.task, []):
            parts += [f"### {group.title}", *_figures(group), _escape(group.missing)]
        settings = _settings(recorded, task.task)
        parts += ["### Settings chosen", settings] if settings else []
    failed = [[*map(_escape, row)] for row in protocol.failures(summary)]
    parts += ["## Failed trials", _table(["Task", "Method", "Seed", "Step", "Reason"], failed)] if failed else []
    parts += ["## Protocol", *map(_escape, protocol.paragraphs(recorded, summary))]
    known = "\n".join(f"- {_escape(name)} {_escape(version)}" for name, version in protocol.versions(recorded))
    parts += ["## Versions", known] if known else []
    command = protocol.command(recorded)
    parts += ["## Command", _indented(command)] if command else []
    return "\n\n".join(part for part in parts if part) + "\n"


def sentences(task: TaskSummary) -> str:
    """The verdict sentences of a task as a Markdown list, the methods before the baseline."""
    ordered = sorted(task.ranked(), key=lambda found: found.verdict == BASELINE)
    return "\n".join(f"- {_escape(found.sentence)}" for found in ordered)


def leaderboard(task: TaskSummary) -> str:
    """Mean ± half width per method and measure as a Markdown table; the best means are bold."""
    rows = []
    for summary in task.ranked():
        cells = [_escape(summary.method), seeds_text(summary)]
        for measure in task.measures:
            mean, half_width = cell(measure, summary)
            mean = f"**{mean}**" if summary.method in best(measure, task) else mean
            cells.append(f"{mean} ± {half_width}" if half_width else mean)
        rows.append(cells)
    return _table(["Method", "Seeds", *(measure.label for measure in task.measures)], rows)


def differences(task: TaskSummary) -> str:
    """Paired differences to the baseline ± half width as a Markdown table, with p of the sign-flip test after Holm."""
    rows = []
    for summary in task.ranked():
        found = [summary.differences.get(measure.key) for measure in task.measures]
        pairs = [difference for difference in found if difference is not None]
        if pairs:
            cells = [" ".join(filter(None, difference_cell(*pair))) for pair in zip(task.measures, found, strict=True)]
            rows.append([_escape(summary.method), pairs_text(pairs), *cells, p_text(pairs[0].smallest_p_holm)])
    headings = ["Minus " + _escape(task.baseline), "Pairs", *(measure.label for measure in task.measures), "Smallest p"]
    return _table(headings, rows) + "\n\n" + differences_note(task) if rows else ""


def differences_note(task: TaskSummary) -> str:
    """What stands in the table of differences."""
    unit = "" if task.main.of_text else "; accuracy in points"
    return (
        f"Method minus baseline, paired by seed, ± half of the 95% interval{unit}. p by the sign-flip test after "
        "Holm's correction over the methods; so many pairs cannot reach a smaller p than the one told with them."
    )


def difference_cell(measure: Measure, difference: Difference | None) -> tuple[str, str, str]:
    """(difference, ± half width, p after Holm) in words; the last two may be empty."""
    if difference is None:
        return "–", "", ""
    half_width = measure.spread(difference.half_width)
    p = p_text(difference.p_holm)
    return measure.signed(difference.mean), f"± {half_width}" if half_width else "", f"(p {p})"


def pairs_text(found: Sequence[Difference]) -> str:
    """How many seeds were paired: `8`, or `7 to 8` where the measures differ."""
    counts = sorted({len(difference.seeds) for difference in found})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def console(summary: Summary) -> RenderGroup:
    """The leaderboard of every task and its sentences, for `rich.console.Console.print`."""
    from rich import box
    from rich.console import Group as RenderGroup
    from rich.table import Table
    from rich.text import Text

    colours = {BETTER: "green", WORSE: "red"}
    parts: list[Table | Text] = []
    for task in summary.tasks:
        table = Table(title=Text(task.task), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
        table.padding, table.show_edge = 0, False
        table.add_column("Method", no_wrap=True)
        measures = _in_a_terminal(task)
        table.add_column("Seeds", justify="right")
        for heading in (*(NARROW.get(measure.key, measure.label) for measure in measures), "Minus baseline"):
            table.add_column(heading, justify="right", min_width=max(7, *map(len, heading.split())))
        for found in task.ranked():
            row = [
                Text(
                    f"{MARKS.get(found.verdict, '≈')} {found.method.rpartition(':')[2]}",
                    style=colours.get(found.verdict, ""),
                )
            ]
            row.append(Text(seeds_text(found)))
            for measure in measures:
                mean, half_width = cell(measure, found)
                text = Text(mean, style="bold" if found.method in best(measure, task) else "")
                row.append(text.append(f"\n±{half_width}", style="dim not bold") if half_width else text)
            difference = found.differences.get(task.main.key)
            row.append(
                Text(f"{task.main.signed(difference.mean)}\np={p_text(difference.p_holm)}" if difference else "–")
            )
            table.add_row(*row)
        parts.append(table)
        for found in sorted(task.ranked(), key=lambda found: found.verdict == BASELINE):
            mark, style = MARKS.get(found.verdict, "≈"), colours.get(found.verdict, "")
            parts.append(Text(f"{mark} {found.sentence}", style=style))
        parts.append(Text(f"\n{finding(task)}", style="bold"))
    parts += [Text(overall.sentence, style=colours.get(overall.verdict, "")) for overall in summary.overall]
    return RenderGroup(*parts)


def _in_a_terminal(task: TaskSummary) -> list[Measure]:
    crowded = task.main.of_text or any(measure.key == "accuracy_shifted" for measure in task.measures)
    left_out = LEFT_TO_THE_PAGE + (GIVES_WAY if crowded else ())
    return [measure for measure in task.measures if measure.key not in left_out]


def _shifted(recorded: Recorded, task: TaskSummary) -> list[str]:
    return _afterwards(shifts.TITLE, shifts.table(recorded, task), shifts.sentence(recorded, task.task))


def _bootstrap(recorded: Recorded, task: TaskSummary) -> list[str]:
    if not task.main.of_text:
        return []
    found = bootstrap.table(recorded, task)
    rows = [[*map(_escape, row)] for row in found[1]] if found else []
    return [f"### {bootstrap.TITLE}", _table(found[0], rows) if found else "", bootstrap.sentence(recorded, task)]


def _beams(recorded: Recorded, task: TaskSummary) -> list[str]:
    return _afterwards(beams.TITLE, beams.table(recorded, task), beams.sentence())


def _afterwards(title: str, found: tuple[list[str], list[list[str]]] | None, told: str) -> list[str]:
    if found is None:
        return []
    return [f"### {title}", _table(found[0], [[*map(_escape, row)] for row in found[1]]), told]


def _figures(group: Group) -> list[str]:
    links = [f"![{_escape(picture.description)}](figures/{picture.name}.svg)" for picture in group.pictures]
    return ["\n".join(links), group.caption] if links else []


def _settings(recorded: Recorded, task: str) -> str:
    methods, differing, shared = protocol.settings_table(recorded, task)
    rows = [[_escape(key), *map(_escape, cells)] for key, cells in differing]
    parts = [_table(["Setting", *map(_escape, methods)], rows)] if rows else []
    if shared:
        parts.append("Alike for all: " + _escape(", ".join(f"{key} {value}" for key, value in shared)) + ".")
    note = protocol.tuning_note(recorded, task)
    return "\n\n".join([*parts, _escape(note)] if note else parts)


def _table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _indented(text: str) -> str:
    # An indented block needs no fence that the text itself could close.
    return "\n".join("    " + line for line in text.splitlines())


def _escape(text: str) -> str:
    """`text` with what Markdown or HTML would read as markup escaped, on one line."""
    text = re.sub(r"\s+", " ", str(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*|\[\]#~$])", r"\\\1", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
