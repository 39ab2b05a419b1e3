"""Training examples whose label looks wrong, from the labels.json of a run: a page of its own, a part of a report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from labo.records.comparison import Recorded
from labo.report import channel_map, render
from labo.report.measures import number
from labo.report.model import Bar, Block, Card, Cards, Cell, Report, Section, Table, Text
from labo.wording import counted

MAX_IN_REPORT = 12  # examples of a run; the run's own page shows all that were kept
_PNG = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+=*")
LabelIssues = Mapping[str, Any]


def page(issues: LabelIssues, *, samples: bool = True) -> str:
    """The HTML page of one run."""
    report = Report(
        f"Suspicious labels: {issues.get('task')}, {_name(issues)}",
        lead(issues),
        (
            *([Section("The noise channel", shown)] if (shown := _channel(issues)) else []),
            Section("Examples", examples(issues["top"], samples=samples)),
            Section("How they were ranked", (Text(_ranking(issues)),)),
        ),
        "" if samples else "Made without samples: no images or values of the data.",
    )
    return render.html(report)


def section(recorded: Recorded, task: str, *, samples: bool) -> Section | None:
    """The part of a report about the runs of a task that `labo labels` has ranked; None where there is none."""
    blocks: list[Block] = []
    for record in recorded.records:
        if record["task"] != task:
            continue
        issues = valid(recorded.label_issues(task, str(record["method"]), record["seed"]))
        if issues is not None:
            shown = examples(issues["top"][:MAX_IN_REPORT], samples=samples)
            blocks.append(Section(_name(issues), (Text(lead(issues), "caption"), *_channel(issues), *shown)))
    return Section("Suspicious labels", tuple(blocks), html_only=True) if blocks else None


def valid(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """What `labo labels` wrote about a run; None where that is missing or damaged."""
    if found is None or not isinstance(found.get("top"), list):
        return None
    numbers = ("seed", "folds", "beta", "examples", "disagree")
    planted = found.get("planted")
    whole = planted is None or (isinstance(planted, dict) and has(planted, "count", "precision", "chance"))
    lines = all(isinstance(line, dict) and has(line, "rank", "q_given", "q_other") for line in found["top"])
    return found if whole and lines and has(found, *numbers) else None


def lead(issues: LabelIssues) -> str:
    """How many labels look wrong, and how many of the injected ones are among the first."""
    folds = issues["folds"]
    evaluator = f"{folds} networks that had not trained on them" if folds else "the run's own network"
    if issues.get("memory"):
        evaluator = "what the network said of them during training (the run's memory)"
    text = (
        f"Judged by {evaluator}, {issues['disagree']} of {issues['examples']} training examples have a label q* that "
        "prefers another class."
    )
    if isinstance(channel := issues.get("channel"), dict) and channel.get("sentence"):
        text += f" {channel['sentence']}"
    injected = issues.get("planted")
    if injected is None:
        return text
    many = counted(injected["count"], "label was", "labels were")
    text += (
        f" {many} injected as noise: {injected['precision']:.1%} of the first "
        f"{injected['count']} are among them, where chance would find {injected['chance']:.1%}."
    )
    # Folders of old versions lack the precision and recall of all examples whose q* prefers another class.
    if has(injected, "flagged_precision", "flagged_recall"):
        text += (
            f" Of the examples whose q* prefers another class {injected['flagged_precision']:.1%} are injected "
            f"(precision), and {injected['flagged_recall']:.1%} of the injected are among them (recall)."
        )
    return text


def _channel(issues: LabelIssues) -> tuple[Block, ...]:
    """The noise channel of a search with folds."""
    if not isinstance(channel := issues.get("channel"), dict):
        return ()
    classes = issues.get("classes")
    names = [str(name) for name in classes] if isinstance(classes, list) else None
    return channel_map.blocks(channel, names, f"labels-{channel_map.slug(_name(issues))}-")


def _ranking(issues: LabelIssues) -> str:
    no_proof = "A suspicion is no proof: hard and odd examples come first too."
    if issues.get("memory"):
        return (
            "q* is the run's memory: the running average of what the network said of the example at each visit. "
            "Examples are ranked by the log of the memory of the likeliest other class over that of the given one. "
            f"{no_proof}"
        )
    if issues["folds"]:
        network = f"Each example was judged by one of {issues['folds']} networks that had not trained on it."
    else:
        network = (
            "The run's own network judged the examples that it had trained on: it does not suspect a label that it has "
            "memorized. A run of few epochs, or --folds, shows more."
        )
    return (
        f"q* = softmax(logits / beta) with beta {issues['beta']:g} is the label that the network's prediction and a "
        "uniform prior agree on. Examples are ranked by the log of q* of the likeliest other class over q* of the "
        f"given one. {network} {no_proof}"
    )


def examples(lines: Sequence[LabelIssues], *, samples: bool) -> tuple[Block, ...]:
    """Cards where there are images, else a table, with the values of a row of data where they were kept."""
    if samples and lines and all(_PNG.fullmatch(str(line.get("picture", ""))) for line in lines):
        return (Cards(tuple(map(_card, lines))),)
    values: dict[str, None] = {}
    for line in lines if samples else ():
        values |= dict.fromkeys(line["row"] if isinstance(line.get("row"), dict) else ())
    injected = any("before" in line for line in lines)
    columns = ("Example", "Given", "Other", "q* of given", "q* of other", *(["Injected noise"] if injected else []))
    rows = tuple(tuple(map(Cell, _row(line, injected, list(values)))) for line in lines)
    return (Table("Suspicious labels", (*columns, *values), rows),) if rows else ()


def _row(line: LabelIssues, injected: bool, columns: Sequence[str]) -> list[str]:
    values = line["row"] if columns and isinstance(line.get("row"), dict) else {}
    return [
        f"{line['rank']}. {line.get('example', '')}",
        str(line.get("given", "")),
        str(line.get("other", "")),
        f"{line['q_given']:.3f}",
        f"{line['q_other']:.3f}",
        *([_before(line)] if injected else []),
        *(str(values.get(name, "")) for name in columns),
    ]


def _card(line: LabelIssues) -> Card:
    preference = "q* prefers" if line["q_other"] > line["q_given"] else "next likely"
    bars = (
        _bar(f"given {line.get('given', '')}", line["q_given"], is_given=True),
        _bar(f"{preference} {line.get('other', '')}", line["q_other"], is_given=False),
    )
    tag = f"injected: {before}" if (before := _before(line)) else ""
    return Card(line["picture"], str(line.get("example", "")), line["rank"], bars, tag)


def _bar(label: str, probability: float, *, is_given: bool) -> Bar:
    return Bar(label, f"{probability:.3f}", 100 * min(1.0, max(0.0, probability)), is_given)


def _before(line: LabelIssues) -> str:
    """`was 8` of a label that is injected noise, else nothing."""
    return f"was {line['before']}" if line.get("before", line.get("given")) != line.get("given") else ""


def _name(issues: LabelIssues) -> str:
    return f"{issues.get('method')}, seed {issues['seed']}"


def has(values: LabelIssues, *keys: str) -> bool:
    """Whether the values have finite numbers of these keys."""
    return all(number(values.get(key)) is not None for key in keys)
