"""Suspicious labels as a page of their own and as a part of a report, from the labels.json of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from labo.records.comparison import Recorded
from labo.report.html import document, table
from labo.report.measures import number

# A report of many runs shows so many of each; the run's own page shows all that were kept.
IN_A_REPORT = 12
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+=*")
Found = Mapping[str, Any]


def page(found: Found, *, samples: bool = True) -> str:
    """The whole page of one run; all text that came from outside is escaped."""
    title = f"Suspicious labels: {_title(found)}"
    body = [f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(lead(found))}</p>', *_listed(found["top"], samples)]
    body += ["<h2>How they were found</h2>", f'<p class="prose">{escape(_making(found))}</p>']
    if not samples:
        body.append('<p class="caption">Made without samples: no pictures or values of the data.</p>')
    return document(title, body)


def section(recorded: Recorded, task: str, *, samples: bool) -> list[str]:
    """The part of a report for the runs of a task that `labo labels` has looked at; nothing where there is none."""
    parts = []
    for record in recorded.records:
        if record["task"] != task:
            continue
        found = valid(recorded.label_issues(task, str(record["method"]), record["seed"]))
        if found is not None:
            parts += [f"<h4>{escape(_title(found, task=False))}</h4>", f'<p class="caption">{escape(lead(found))}</p>']
            parts += _listed(found["top"][:IN_A_REPORT], samples)
    return ["<h3>Suspicious labels</h3>", *parts] if parts else []


def valid(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """What `labo labels` wrote about a run; None where that is missing or damaged."""
    if found is None or not isinstance(found.get("top"), list):
        return None
    numbers = ("seed", "folds", "beta", "examples", "disagree")
    planted = found.get("planted")
    whole = planted is None or (isinstance(planted, dict) and _has(planted, "count", "precision", "chance"))
    lines = all(isinstance(line, dict) and _has(line, "rank", "q_given", "q_other") for line in found["top"])
    return found if whole and lines and _has(found, *numbers) else None


def lead(found: Found) -> str:
    """What was found, in plain sentences."""
    judge = f"{found['folds']} networks that had not trained on them" if found["folds"] else "the run's own network"
    if found.get("memory"):
        judge = "what the network said of them during training (the run's memory)"
    share = (
        f"Judged by {judge}, {found['disagree']} of {found['examples']} training examples have a label q* that prefers "
        "another class."
    )
    planted = found.get("planted")
    if planted is None:
        return share
    return (
        f"{share} {planted['count']} labels were planted wrong by label noise: {planted['precision']:.1%} of the first "
        f"{planted['count']} are among them, where chance would find {planted['chance']:.1%}.{_flagged(planted)}"
    )


def _flagged(planted: Found) -> str:
    """Precision and recall of all examples whose q* prefers another class; records of old versions have none."""
    if not _has(planted, "flagged_precision", "flagged_recall"):
        return ""
    return (
        f" Of the examples whose q* prefers another class {planted['flagged_precision']:.1%} are injected (precision), "
        f"and {planted['flagged_recall']:.1%} of the injected are among them (recall)."
    )


def _making(found: Found) -> str:
    if found["folds"]:
        told = f"Each example was judged by one of {found['folds']} networks that had not trained on it."
    else:
        told = (
            "The run's own network judged the examples that it had trained on: what it has learnt by heart, it does "
            "not suspect. A run of few epochs, or --folds, shows more."
        )
    if found.get("memory"):
        return (
            "q* is the run's memory: the running average of what the network said of the example at each visit. "
            "Examples are ranked by the log of the memory of the likeliest other class over that of the given one. A "
            "suspicion is no proof: hard and odd examples come first too."
        )
    return (
        f"q* = softmax(logits / beta) with beta {found['beta']:g} is the label that the network's belief and a uniform "
        "prior agree on. Examples are ranked by the log of q* of the likeliest other class over q* of the given one. "
        f"{told} A suspicion is no proof: hard and odd examples come first too."
    )


def _listed(lines: Sequence[Found], samples: bool) -> list[str]:
    """Cards where there are pictures, else a table, with the values of rows where they were kept."""
    pictures = [_PICTURE.fullmatch(str(line.get("picture", ""))) for line in lines]
    if samples and lines and all(pictures):
        return ['<div class="suspects">' + "\n".join(map(_card, lines)) + "</div>"]
    columns: dict[str, None] = {}
    for line in lines if samples else ():
        columns |= dict.fromkeys(line["row"] if isinstance(line.get("row"), dict) else ())
    planted = any("before" in line for line in lines)
    headings = ["Example", "Given", "Other", "q* of given", "q* of other", *(["Planted"] if planted else [])]
    rows = [[escape(text) for text in _cells(line, planted, list(columns))] for line in lines]
    return [table([*headings, *columns], rows, "Suspicious labels")] if rows else []


def _cells(line: Found, planted: bool, columns: Sequence[str]) -> list[str]:
    before = [_before(line)] if planted else []
    values = line["row"] if columns and isinstance(line.get("row"), dict) else {}
    return [
        f"{line['rank']}. {line.get('example', '')}",
        str(line.get("given", "")),
        str(line.get("other", "")),
        f"{line['q_given']:.3f}",
        f"{line['q_other']:.3f}",
        *before,
        *(str(values.get(name, "")) for name in columns),
    ]


def _card(line: Found) -> str:
    word = "q* prefers" if line["q_other"] > line["q_given"] else "next likely"
    bars = [_bar("given", f"given {line.get('given', '')}", line["q_given"])]
    bars.append(_bar("other", f"{word} {line.get('other', '')}", line["q_other"]))
    planted = '<span class="tag worse">' + escape(f"planted: {before}") + "</span>" if (before := _before(line)) else ""
    name = escape(str(line.get("example", "")))
    return (
        f'<figure class="suspect"><img src="{line["picture"]}" alt="{name}"><figcaption><small>{line["rank"]}. {name}'
        f"</small>{''.join(bars)}{planted}</figcaption></figure>"
    )


def _bar(kind: str, text: str, share: float) -> str:
    width = f"{100 * min(1.0, max(0.0, share)):.1f}%"
    return f'<span class="bar {kind}"><small>{share:.3f}</small>{escape(text)}<i style="width: {width}"></i></span>'


def _before(line: Found) -> str:
    """`was 8` of a label that was planted wrong, else nothing."""
    return f"was {line['before']}" if line.get("before", line.get("given")) != line.get("given") else ""


def _title(found: Found, task: bool = True) -> str:
    parts = [str(found.get("task"))] if task else []
    return ", ".join([*parts, str(found.get("method")), f"seed {found['seed']}"])


def _has(found: Found, *keys: str) -> bool:
    return all(number(found.get(key)) is not None for key in keys)
