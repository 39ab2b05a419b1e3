"""The label picture for text: what a regularizer holds likely at each place of a sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from labo.networks import logits_of
from labo.reduction import as_rows

# So many sentences of at most so many pieces are shown, with so many pieces at each place.
SENTENCES, LONGEST, PIECES = 6, 24, 4


def of(model: nn.Module, regularizer: Any, examples: Any, vocabulary: Any) -> list[dict[str, Any]]:
    """The first short sentences of `examples`, with the likeliest pieces of the label at each place.

    The label is what `Regularizer.labels` gives for the network's logits, the reference's pieces before a place known.

    Returns:
        For each sentence its "source" and "target" text and "places": the "reference" piece, its "mass" in the label,
        and "top", pairs of piece and mass. Empty for a method without labels, or with labels for training alone.
    """
    if regularizer.untold({}):
        return []
    device, training = next(model.parameters()).device, model.training
    model.eval()
    found = []
    short = (examples.target.lengths <= LONGEST).nonzero().flatten()[:SENTENCES].tolist()
    for place in short:
        batch = {name: value.to(device) for name, value in examples.__getitems__([place]).items()}
        target = batch.pop("labels")[0]
        with torch.no_grad():
            known = replace(as_rows(logits_of(model(**batch))[0].float(), target, None, -100), given={})
            labels = regularizer.eval().labels(known)
        if labels is None:
            break
        shown = {"source": examples.source_text[place], "target": examples.target_text[place]}
        found.append({**shown, "places": _places(labels.cpu(), target.cpu(), vocabulary)})
    model.train(training)
    return found


def _places(labels: torch.Tensor, target: torch.Tensor, vocabulary: Any) -> list[dict[str, Any]]:
    mass, pieces = labels.topk(min(PIECES, labels.shape[-1]))
    names = [vocabulary.pieces(row) for row in pieces.tolist()]
    return [
        {
            "reference": vocabulary.pieces([piece])[0],
            "mass": round(float(row[piece]), 5),
            "top": [[name, round(value, 5)] for name, value in zip(some, masses, strict=True)],
        }
        for piece, row, some, masses in zip(target.tolist(), labels, names, mass.tolist(), strict=True)
    ]
