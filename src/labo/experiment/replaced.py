"""The training examples whose label a method that learns labels has replaced."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from labo.experiment.samples import sample_as_json, short_names

# So many examples are described.
MAX_EXAMPLES = 48


def describe(task: Any, splits: Any, targets: Tensor | None) -> dict[str, Any]:
    """JSON-able: how many of the training labels were replaced, and the first of them, the surest first.

    A label is replaced where another class is the likeliest of what the example was trained towards, `targets` (N, C);
    None stands for the labels as written, smoothed.
    """
    train, classes = splits.train, splits.classes
    content: dict[str, Any] = {"classes": list(classes), "examples": len(train), "replaced": 0, "top": []}
    if targets is None:
        return content
    largest, likeliest = targets.max(-1)
    replaced = (likeliest != train.target).nonzero().flatten()
    order = replaced[largest[replaced].argsort(descending=True, stable=True)][:MAX_EXAMPLES]
    content["replaced"] = len(replaced)
    if train.before_noise is not None:
        injected = train.before_noise != train.target
        content |= {"injected": int(injected.sum()), "replaced_injected": int(injected[replaced].sum())}
    places = order.tolist()
    if not places:
        return content
    names = short_names(train.origin.names(), places)
    samples = task.samples(train.subset(order), splits.preprocessing)
    for rank, (place, name, sample) in enumerate(zip(places, names, samples, strict=True), 1):
        given = int(train.target[place])
        line = {
            "rank": rank,
            "example": name,
            "place": int(train.origin.source_indices[place]),
            "given": classes[given],
            "other": classes[int(likeliest[place])],
            "q_given": round(targets[place, given].item(), 6),
            "q_other": round(largest[place].item(), 6),
        }
        if train.before_noise is not None:
            line["before"] = classes[int(train.before_noise[place])]
        content["top"].append({**line, **sample_as_json(sample)})
    return content
