"""What a method that learns labels has found: wrong labels, the channel, what it chose, which labels it replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labo.errors import UserError
from labo.records.comparison import Recorded
from labo.records.storage import read_object, write_text
from labo.records.trial import LEARNT, LEARNT_PAGE
from labo.report import channel_map, label_issues, render
from labo.report.measures import number
from labo.report.model import Block, Details, Report, Section, Text
from labo.wording import counted

MAX_IN_REPORT = 12  # examples of a run; the run's own page shows all that were kept
REPLACED = "Labels that were replaced"
Content = Mapping[str, Any]


def read(folder: Path) -> dict[str, Any] | None:
    """What the run in a folder says of replaced labels; None where that is missing or damaged."""
    return _valid(read_object(folder / LEARNT))


def sentences(record: Content, replaced: Content | None) -> list[str]:
    """What a run found, a sentence each: what it chose and why, wrong labels, replaced ones, the end of training."""
    lines = []
    decision, channel = _object(record, "decision"), _object(record, "channel")
    for source in (decision, channel, _object(record, "pruning")):
        if source is not None and isinstance(source.get("sentence"), str):
            lines.append(source["sentence"])
    if decision is None and channel is None:
        return lines
    if channel is not None:
        lines += _cross_fitting(channel)
    if replaced is not None:
        lines.append(_replaced(record, replaced))
        if (epoch := number(replaced.get("epoch"))) is not None:
            lines.append(f"The final network is that of epoch {epoch:g}.")
    return lines


def write_page(folder: Path, record: Content) -> Path | None:
    """The page of a run, in its folder; None where its method learns no labels.

    Raises:
        UserError: it cannot be written.
    """
    replaced = read(folder)
    blocks = _blocks(record, replaced, f"{channel_map.slug(str(record.get('method')))}-", limit=None)
    if not blocks:
        return None
    title = f"What was learnt of the labels: {record.get('task')}, {_name(record)}"
    report = Report(title, " ".join(sentences(record, replaced)), blocks)
    try:
        return write_text(folder / LEARNT_PAGE, render.html(report))
    except OSError as error:
        raise UserError(f"Cannot write the page into '{folder}': {error.strerror or error}.") from error


def section(recorded: Recorded, task: str, prefix: str, *, samples: bool) -> Section | None:
    """The part of a report about the runs of a task that have learnt labels; None where there is none.

    The first run of each method has its channel; the others are folded up, with the examples alone.
    """
    parts: list[Block] = []
    shown: set[str] = set()
    for record in recorded.records:
        method = str(record["method"])
        if record["task"] != task or record.get("failed"):
            continue
        folder = recorded.run_folder(task, method, record["seed"])
        replaced = None if folder is None else read(folder)
        blocks = _blocks(record, replaced, f"{prefix}{channel_map.slug(method)}-", limit=MAX_IN_REPORT, samples=samples)
        if not blocks:
            continue
        lead = Text(" ".join(sentences(record, replaced)), "caption")
        if method in shown:
            examples = tuple(block for block in blocks if block.title == REPLACED)
            parts.append(Details(_name(record), (lead, *examples), html_only=True))
        else:
            parts.append(Section(_name(record), (lead, *blocks)))
        shown.add(method)
    return Section("What was learnt of the labels", tuple(parts)) if parts else None


def _blocks(
    record: Content, replaced: Content | None, prefix: str, *, limit: int | None, samples: bool = True
) -> tuple[Section, ...]:
    """The channel and the replaced examples of a run; () where its method learns no labels."""
    source = _object(record, "channel") or _object(_object(record, "decision") or {}, "channel")
    parts = []
    if source is not None and (channel := channel_map.blocks(source, _classes(replaced), prefix)):
        parts.append(Section("The noise channel", channel))
    if replaced is not None and replaced["top"]:
        shown = replaced["top"][:limit]
        caption = (
            f"{counted(len(shown), 'example')} of the {replaced['replaced']} whose likeliest class in the label that "
            "they were trained towards, q*, is another than the one written; the surest first."
        )
        examples = (Text(caption, "caption"), *label_issues.examples(shown, samples=samples))
        parts.append(Section(REPLACED, examples, html_only=True))
    return tuple(parts)


def _replaced(record: Content, replaced: Content) -> str:
    """How many labels were replaced."""
    count = int(replaced["replaced"])
    if not count:
        trained = "trained as label smoothing"
        decision = _object(record, "decision")
        if decision is not None and decision.get("name") != "plain":
            trained = "trained with the memory, which outweighs no label as it is written"
        found = "No label noise found" if _clean(record) else "No label was replaced"
        return f"{found}: {trained}."
    text = f"It replaced {count} of {counted(replaced['examples'], 'label')}"
    if number(replaced.get("injected")) and number(replaced.get("replaced_injected")) is not None:
        text += f", {replaced['replaced_injected']} of which are among the {replaced['injected']} injected as noise"
    return f"{text}."


def _clean(record: Content) -> bool:
    """Whether the channel says that no labels are wrong."""
    channel = _object(record, "channel") or _object(_object(record, "decision") or {}, "channel") or {}
    return channel.get("clean") is True


def _cross_fitting(channel: Content) -> list[str]:
    """What the networks of folds trained with and why, and when they stopped."""
    losses = channel.get("held_out")
    if number(channel.get("folds")) is None or "networks" not in channel:
        return []
    names = {"smoothing": "label smoothing", "strong": "a strong memory"}
    text = (
        f"The networks of {channel['folds']} folds trained with {names.get(channel['networks'], channel['networks'])}"
    )
    if isinstance(losses, dict) and len(losses) > 1:
        values = ", ".join(f"{names.get(name, name)} {value:.3f}" for name, value in losses.items())
        text += f", whose held-out labels are likeliest (negative log-likelihood through a channel: {values})"
    lines = [f"{text}; the cost was {channel.get('cost', 0):g} plain runs."]
    stopped = channel.get("stopped")
    if isinstance(stopped, list) and stopped:
        lines.append(f"They stopped at epoch {', '.join(f'{epoch:g}' for epoch in stopped)}, by the validation split.")
    if isinstance(repeated := channel.get("repeated"), list):
        again = ", ".join(map(str, repeated))
        lines.append(f"Diverged, and trained again with half the learning rate: {again}.")
    return lines


def _classes(replaced: Content | None) -> Sequence[str] | None:
    names = (replaced or {}).get("classes")
    return [str(name) for name in names] if isinstance(names, list) else None


def _object(record: Content, key: str) -> dict[str, Any] | None:
    value = record.get(key)
    return value if isinstance(value, dict) else None


def _valid(content: dict[str, Any] | None) -> dict[str, Any] | None:
    if content is None or not isinstance(content.get("top"), list):
        return None
    lines = all(
        isinstance(line, dict) and label_issues.has(line, "rank", "q_given", "q_other") for line in content["top"]
    )
    return content if lines and label_issues.has(content, "examples", "replaced") else None


def _name(record: Content) -> str:
    return f"{record.get('method')}, seed {record.get('seed')}"
