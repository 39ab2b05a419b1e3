"""The labels of translators in a report: what a regularizer's label holds likely at each token of a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from labo.records.comparison import Recorded
from labo.report.measures import number
from labo.report.model import Bar, Block, Details, Section, Text, TokenBars
from labo.report.verdict import TaskSummary

MAX_SENTENCES, OPEN_SENTENCES, MAX_ALTERNATIVES = 4, 2, 3
_SPACE = "▁"  # how SentencePiece writes the space before a word
_FIRST = ("label_smoothing", "labo")  # the pair that the labels are there to compare
_CAPTION = (
    "The label q that each regularizer gives at each token of some validation sentences, which the network has not "
    "trained on; it has read the source and the reference before the token. It is the label that stands beside the "
    "reference in the loss, before the two are mixed. A box is a token: first the reference and its share of the "
    "label, then the other pieces with the largest shares. Bars are relative to the largest share of the row of boxes. "
    "␣ begins a word, </s> ends the sentence."
)
Token = Mapping[str, Any]
# method -> (seed, the tokens of a sentence)
ByMethod = dict[str, tuple[int, list[Token]]]


def section(recorded: Recorded, task: TaskSummary) -> Section | None:
    """The labels of a translation task's sentences; None where the runs kept no sentences.

    Each method shows its first seed that has any.
    """
    if not task.main.of_text:
        return None
    pairs = _pairs(recorded, task)
    if not pairs:
        return None
    blocks: list[Block] = [Text(_CAPTION, "caption")]
    shown = sorted(pairs.items(), key=lambda item: -len(item[1]))[:MAX_SENTENCES]  # those that most methods have
    for index, ((source, target), by_method) in enumerate(shown):
        bars = tuple(_of_method(name, *label) for name, label in by_method.items())
        blocks.append(Details(f"{_isolated(source)} → {_isolated(target)}", bars, is_open=index < OPEN_SENTENCES))
    with_labels = {name for by_method in pairs.values() for name in by_method}
    without = [summary.method for summary in task.methods if summary.method not in with_labels]
    if without:
        text = (
            f"No label is shown for {', '.join(without)}: it has none, or none for sentences that it did not train on."
        )
        blocks.append(Text(text, "missing"))
    return Section("What the labels look like, word by word", tuple(blocks), html_only=True)


def _pairs(recorded: Recorded, task: TaskSummary) -> dict[tuple[str, str], ByMethod]:
    """(source, target) -> method -> the tokens of its first seed that has sentences."""
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
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)


def _read(sentences: Any) -> list[dict[str, Any]]:
    """The sentences that are complete; damaged ones are left out."""
    return [sentence for sentence in sentences if _is_sentence(sentence)] if isinstance(sentences, list) else []


def _is_sentence(sentence: Any) -> bool:
    if not isinstance(sentence, dict) or not all(isinstance(sentence.get(key), str) for key in ("source", "target")):
        return False
    tokens = sentence.get("places")
    return isinstance(tokens, list) and bool(tokens) and all(map(_is_token, tokens))


def _is_token(token: Any) -> bool:
    if not isinstance(token, dict) or not isinstance(token.get("top"), list):
        return False
    pieces = [[token.get("reference"), token.get("mass")], *token["top"]]
    return len(pieces) > 1 and all(
        isinstance(piece, list) and len(piece) == 2 and isinstance(piece[0], str) and number(piece[1]) is not None
        for piece in pieces
    )


def _of_method(name: str, seed: int, tokens: Sequence[Token]) -> TokenBars:
    note = f"seed {seed}, {_share(fmean(token['mass'] for token in tokens))} on the reference in the mean"
    top = tokens[0]["top"]
    if any(token["top"] != top for token in tokens):
        return TokenBars(name, note, "", _boxes(tokens, MAX_ALTERNATIVES))
    # A label that does not follow the model is the same at every token: it is described once.
    if all(mass == tokens[0]["mass"] for mass in [*(mass for _, mass in top), *(token["mass"] for token in tokens)]):
        text = f"The same at every token: all pieces share alike, {_share(top[0][1])} each."
        return TokenBars(name, note, text, ())
    listed = ", ".join(f"{_isolated(_piece(piece))} {_share(mass)}" for piece, mass in top)
    text = f"The same at every token; its largest shares: {listed}."
    return TokenBars(name, note, text, _boxes(tokens, 0))


def _boxes(tokens: Sequence[Token], alternatives: int) -> tuple[tuple[Bar, ...], ...]:
    largest = max(
        (mass for token in tokens for mass in (token["mass"], *(mass for _, mass in token["top"][: alternatives + 1]))),
        default=0.0,
    )
    boxes = []
    for token in tokens:
        others = [(piece, mass) for piece, mass in token["top"] if piece != token["reference"]][:alternatives]
        bars = [_bar(token["reference"], token["mass"], largest, is_given=True)]
        boxes.append((*bars, *(_bar(piece, mass, largest, is_given=False) for piece, mass in others)))
    return tuple(boxes)


def _bar(piece: str, mass: float, largest: float, *, is_given: bool) -> Bar:
    percent = 100 * min(1.0, max(0.0, mass / largest)) if largest > 0 else 0.0
    return Bar(_piece(piece), _share(mass), percent, is_given)


def _piece(piece: str) -> str:
    return piece.replace(_SPACE, "␣")


def _isolated(text: str) -> str:
    """`text` between Unicode's isolates, so that its direction of writing does not turn what stands beside it."""
    return f"\u2068{text}\u2069"


def _share(mass: float) -> str:
    """A share as it is written in a narrow box: `.171`, `<.001`."""
    if 0 < mass < 0.0005:
        return "<.001"
    return f"{mass:.3f}".removeprefix("0")
