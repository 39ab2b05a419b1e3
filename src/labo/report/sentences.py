"""The label picture for text: what a regularizer's label holds likely at each place of a sentence, in HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Any

from labo.records.comparison import Recorded
from labo.report.measures import number
from labo.report.verdict import TaskSummary

# So many sentences are shown, the first of them open; so many pieces stand below the reference's.
SHOWN, OPEN, OTHERS = 4, 2, 3
_SPACE = "▁"  # how SentencePiece writes the space before a word
_PAIR_FIRST = ("label_smoothing", "labo")
Place = Mapping[str, Any]
# method -> (seed, the places of a sentence)
ByMethod = dict[str, tuple[int, list[Place]]]


def section(recorded: Recorded, task: TaskSummary) -> list[str]:
    """The part of the page for a translation task, all text escaped; nothing where the runs kept no sentences.

    Each method shows its first seed that has any.
    """
    pairs = _pairs(recorded, task)
    if not pairs:
        return []
    parts = ["<h3>What the labels look like, word by word</h3>", f'<p class="caption">{_caption()}</p>']
    shown = sorted(pairs.items(), key=lambda item: -len(item[1]))[:SHOWN]  # those that most methods have
    for place, ((source, target), methods) in enumerate(shown):
        parts.append(f'<details class="sentence"{" open" if place < OPEN else ""}>{_heading(source, target)}')
        parts += [_of_method(name, *found) for name, found in methods.items()]
        parts.append("</details>")
    having = {name for methods in pairs.values() for name in methods}
    without = [summary.method for summary in task.methods if summary.method not in having]
    if without:
        text = (
            f"No label is shown for {', '.join(without)}: it has none, or none for sentences that it did not train on."
        )
        parts.append(f'<p class="missing">{escape(text)}</p>')
    return parts


def _caption() -> str:
    return (
        "The label q that each regularizer gives at each place of some validation sentences, which the network "
        "has not trained on; it has read the source and the reference before the place. It is the label that stands "
        "beside the reference in the loss, before the two are mixed. A box is a place: first the reference's piece "
        "and its share of the label, then the other pieces with the largest shares. Bars are measured by the largest "
        "share of the row of boxes. ␣ begins a word, &lt;/s&gt; ends the sentence."
    )


def _pairs(recorded: Recorded, task: TaskSummary) -> dict[tuple[str, str], ByMethod]:
    """(source, target) -> what each method's first seed with sentences holds of it."""
    found: dict[tuple[str, str], ByMethod] = {}
    names = sorted((summary.method for summary in task.methods), key=_rank)
    for name in names:
        seeds = sorted(
            record["seed"]
            for record in recorded.records
            if record["task"] == task.task and record["method"] == name and not record.get("failed")
        )
        for seed in seeds:
            sentences = _read((recorded.figures(task.task, name, seed) or {}).get("sentences"))
            if sentences:
                for sentence in sentences:
                    pair = (sentence["source"], sentence["target"])
                    found.setdefault(pair, {})[name] = (seed, sentence["places"])
                break
    return found


def _rank(name: str) -> int:
    return _PAIR_FIRST.index(name) if name in _PAIR_FIRST else len(_PAIR_FIRST)


def _read(sentences: Any) -> list[dict[str, Any]]:
    """The sentences that are whole."""
    return [found for found in sentences if _whole(found)] if isinstance(sentences, list) else []


def _whole(sentence: Any) -> bool:
    if not isinstance(sentence, dict) or not all(isinstance(sentence.get(key), str) for key in ("source", "target")):
        return False
    places = sentence.get("places")
    return isinstance(places, list) and bool(places) and all(map(_whole_place, places))


def _whole_place(place: Any) -> bool:
    if not isinstance(place, dict) or not isinstance(place.get("top"), list):
        return False
    pieces = [[place.get("reference"), place.get("mass")], *place["top"]]
    return len(pieces) > 1 and all(
        isinstance(piece, list) and len(piece) == 2 and isinstance(piece[0], str) and number(piece[1]) is not None
        for piece in pieces
    )


def _heading(source: str, target: str) -> str:
    return f'<summary><bdi>{escape(source)}</bdi> → <bdi class="target">{escape(target)}</bdi></summary>'


def _of_method(name: str, seed: int, places: Sequence[Place]) -> str:
    mean = fmean(place["mass"] for place in places)
    heading = f"<h4>{escape(name)} <small>seed {seed}, {_share(mean)} on the reference in the mean</small></h4>"
    tops = places[0]["top"]
    if any(place["top"] != tops for place in places):
        return f"{heading}{_row(places, OTHERS)}"
    # A label that does not follow the model is the same at every place: it is told once.
    if all(mass == places[0]["mass"] for mass in [*(mass for _, mass in tops), *(place["mass"] for place in places)]):
        told = f"The same at every place: all pieces share alike, {_share(tops[0][1])} each."
        return f'{heading}<p class="caption">{told}</p>'
    told = ", ".join(f"{_piece(piece)} {_share(mass)}" for piece, mass in tops)
    return f'{heading}<p class="caption">The same at every place; its largest shares: {told}.</p>{_row(places, 0)}'


def _row(places: Sequence[Place], others: int) -> str:
    largest = max(
        (mass for place in places for mass in (place["mass"], *(mass for _, mass in place["top"][: others + 1]))),
        default=0.0,
    )
    return f'<ol class="places">{"".join(_place(place, others, largest) for place in places)}</ol>'


def _place(place: Place, others: int, largest: float) -> str:
    rest = [(piece, mass) for piece, mass in place["top"] if piece != place["reference"]][:others]
    bars = [_bar("given", f"<b>{_piece(place['reference'])}</b>", place["mass"], largest)]
    bars += [_bar("other", _piece(piece), mass, largest) for piece, mass in rest]
    return f"<li>{''.join(bars)}</li>"


def _bar(kind: str, piece: str, mass: float, largest: float) -> str:
    width = 100 * min(1.0, max(0.0, mass / largest)) if largest > 0 else 0.0
    return f'<span class="bar {kind}"><small>{_share(mass)}</small>{piece}<i style="width: {width:.0f}%"></i></span>'


def _piece(piece: str) -> str:
    return f"<bdi>{escape(piece).replace(_SPACE, '<span class=gap>␣</span>')}</bdi>"


def _share(mass: float) -> str:
    """A share as it is written in a narrow box: `.171`, `<.001`."""
    if 0 < mass < 0.0005:
        return "&lt;.001"
    return f"{mass:.3f}".removeprefix("0")
