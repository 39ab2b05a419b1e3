"""The report as one self-contained HTML page: no network, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from labo.records.comparison import Recorded
from labo.report import beams, bootstrap, protocol, sentences, shifts, suspects
from labo.report.gallery import Group
from labo.report.html import document, pairs, table
from labo.report.measures import p_text
from labo.report.tables import best, cell, difference_cell, differences_note, pairs_text, seeds_text
from labo.report.verdict import BASELINE, Summary, TaskSummary, finding


def page(recorded: Recorded, summary: Summary, pictures: dict[str, list[Group]], *, samples: bool = True) -> str:
    """The whole page; `pictures` maps a task to its groups. All text that came from outside is escaped."""
    names = ", ".join(task.task for task in summary.tasks)
    title = f"{names}: which method is better"
    body = [f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(_lead(recorded, summary))}</p>']
    if summary.overall:
        body += ["<h2>Over all tasks</h2>", _verdicts((found.verdict, found.sentence) for found in summary.overall)]
    for task in summary.tasks:
        body.append(f"<h2>{escape(task.task if len(summary.tasks) > 1 else 'The verdict')}</h2>")
        body += _task(recorded, task, pictures.get(task.task, []), samples)
    body += _making(recorded, summary, samples)
    return document(title, body)


def _lead(recorded: Recorded, summary: Summary) -> str:
    methods = {found.method for task in summary.tasks for found in task.methods}
    seeds = {record["seed"] for record in recorded.records}
    tasks = f" on {len(summary.tasks)} tasks" if len(summary.tasks) > 1 else ""
    trials = len(recorded.records)
    return (
        f"{_many(len(methods), 'method')}{tasks}, {_many(len(seeds), 'seed')}, {_many(trials, 'trial')}. Every "
        f"method is compared with {summary.baseline}, seed by seed."
    )


def _task(recorded: Recorded, task: TaskSummary, groups: Sequence[Group], samples: bool) -> list[str]:
    ordered = sorted(task.ranked(), key=lambda found: found.verdict == BASELINE)
    parts = [f'<p class="lead"><strong>{escape(finding(task))}</strong></p>']
    parts.append(_verdicts((found.verdict, found.sentence) for found in ordered))
    parts += ["<h3>Leaderboard</h3>", _leaderboard(task)]
    parts.append(
        '<p class="caption">Mean over seeds ± half of the 95% interval; the best mean is bold, which alone says '
        "nothing of luck. “Scaled” is after temperature scaling on the validation split.</p>"
    )
    differences = _differences(task)
    if differences:
        parts += [f"<h3>Paired differences to {escape(task.baseline)}</h3>", differences]
        parts.append(f'<p class="caption">{escape(differences_note(task))}</p>')
    parts += [*_shifted(recorded, task), *_bootstrap(recorded, task), *_beams(recorded, task)]
    for place, group in enumerate(groups):
        parts += _group(group)
        parts += sentences.section(recorded, task) if place == 0 and samples and task.main.of_text else []
    parts += suspects.section(recorded, task.task, samples=samples)
    settings = _settings(recorded, task.task)
    return [*parts, "<h3>Settings chosen</h3>", *settings] if settings else parts


def _verdicts(found: Iterable[tuple[str, str]]) -> str:
    items = [
        f'<li><span class="tag {verdict.split()[0]}">{verdict}</span><span>{escape(sentence)}</span></li>'
        for verdict, sentence in found
    ]
    return '<ul class="verdicts">\n' + "\n".join(items) + "\n</ul>"


def _leaderboard(task: TaskSummary) -> str:
    rows = []
    for summary in task.ranked():
        cells = [escape(summary.method), escape(seeds_text(summary))]
        for measure in task.measures:
            mean, half_width = (escape(text) for text in cell(measure, summary))
            mean = f"<b>{mean}</b>" if summary.method in best(measure, task) else mean
            cells.append(f"{mean}<small>± {half_width}</small>" if half_width else mean)
        rows.append(cells)
    return table(["Method", "Seeds", *(measure.label for measure in task.measures)], rows, "Leaderboard")


def _differences(task: TaskSummary) -> str:
    rows = []
    for summary in task.ranked():
        found = [summary.differences.get(measure.key) for measure in task.measures]
        pairs = [difference for difference in found if difference is not None]
        if pairs:
            cells = []
            for measure, difference in zip(task.measures, found, strict=True):
                mean, half_width, p = map(escape, difference_cell(measure, difference))
                cells.append(f'{mean}<small>{half_width}</small><br><small class="p">{p.strip("()")}</small>')
            count = f'{pairs_text(pairs)}<br><small class="p">p ≥ {escape(p_text(pairs[0].smallest_p_holm))}</small>'
            rows.append([escape(summary.method), count, *cells])
    headings = ["Method", "Pairs", *(measure.label for measure in task.measures)]
    return table(headings, rows, "Paired differences") if rows else ""


def _shifted(recorded: Recorded, task: TaskSummary) -> list[str]:
    return _afterwards(shifts.TITLE, shifts.table(recorded, task), shifts.sentence(recorded, task.task))


def _bootstrap(recorded: Recorded, task: TaskSummary) -> list[str]:
    if not task.main.of_text:
        return []
    found, told = bootstrap.table(recorded, task), escape(bootstrap.sentence(recorded, task))
    parts = [f"<h3>{escape(bootstrap.TITLE)}</h3>"]
    if found is None:
        return [*parts, f'<p class="missing">{told}</p>']
    rows = [[*map(escape, row)] for row in found[1]]
    return [*parts, table(found[0], rows, "Paired bootstrap"), f'<p class="caption">{told}</p>']


def _beams(recorded: Recorded, task: TaskSummary) -> list[str]:
    return _afterwards(beams.TITLE, beams.table(recorded, task), beams.sentence())


def _afterwards(title: str, found: tuple[list[str], list[list[str]]] | None, told: str) -> list[str]:
    """What was measured after the trials: a title, a table and what it tells; nothing where nothing was."""
    if found is None:
        return []
    rows = [[*map(escape, row)] for row in found[1]]
    return [f"<h3>{escape(title)}</h3>", table(found[0], rows, title), f'<p class="caption">{escape(told)}</p>']


def _group(group: Group) -> list[str]:
    parts = [f"<h3>{escape(group.title)}</h3>"]
    if group.pictures:
        parts.append(f'<p class="caption">{escape(group.caption)}</p>')
        figures = "\n".join(f"<figure>{picture.svg}</figure>" for picture in group.pictures)
        even = " even" if len(group.pictures) in (2, 4) else ""
        parts.append(f'<div class="grid{even}">{figures}</div>')
    for method, (names, labels) in group.tables.items():
        rows = [
            [escape(name), *("–" if value is None else f"{value:.4f}" for value in row)]
            for name, row in zip(names, labels, strict=True)
        ]
        numbers = table(["True class", *map(escape, names)], rows, f"Mean label of {method}", escaped=True)
        parts.append(f"<details><summary>The numbers: {escape(method)}</summary>{numbers}</details>")
    if group.missing:
        parts.append(f'<p class="missing">{escape(group.missing)}</p>')
    return parts


def _settings(recorded: Recorded, task: str) -> list[str]:
    methods, differing, shared = protocol.settings_table(recorded, task)
    rows = [[escape(key), *map(escape, cells)] for key, cells in differing]
    parts = [table(["Setting", *methods], rows, "Settings")] if rows else []
    if shared:
        parts.append("<details><summary>Settings that all methods share</summary>" + pairs(shared) + "</details>")
    note = protocol.tuning_note(recorded, task)
    return [*parts, f'<p class="caption">{escape(note)}</p>'] if note else parts


def _making(recorded: Recorded, summary: Summary, samples: bool) -> list[str]:
    parts = []
    failed = protocol.failures(summary)
    if failed:
        rows = [[*map(escape, row)] for row in failed]
        headings = ["Task", "Method", "Seed", "Step", "Reason"]
        parts += ["<h2>Failed trials</h2>", table(headings, rows, "Failed trials", wide=True)]
    parts.append("<h2>How it was compared</h2>")
    for text in protocol.paragraphs(recorded, summary):
        word, rest = text.split(". ", 1)
        parts.append(f'<p class="prose"><strong>{escape(word)}.</strong> {escape(rest)}</p>')
    parts.append("<h2>How to make it again</h2>")
    command = protocol.command(recorded)
    parts += [f"<pre><code>{escape(command)}</code></pre>"] if command else []
    time = ("trial time, added up", _duration(protocol.seconds(recorded)))
    parts.append(pairs([time, *protocol.versions(recorded)]))
    if not samples:
        text = "Made without samples: figures and numbers, no pictures or sentences of the data."
        parts.append(f'<p class="caption">{text}</p>')
    return parts


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
