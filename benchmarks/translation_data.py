"""What reading Multi30k, its vocabulary and its batches cost, in seconds (medians of five), and how full batches are.

LABO_DATA=FOLDER OMP_NUM_THREADS=1 python benchmarks/translation_data.py
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from labo.tasks.translation import text_files
from labo.tasks.translation.batching import TokenBatches
from labo.tasks.translation.dataset import Sentences
from labo.tasks.translation.vocabulary import Vocabulary

REPEATS, SIZE, BUDGET = 5, 8_000, 2_048


def measure(folder: Path) -> None:
    """Print the seconds of each step over the training part."""
    source, target = (folder / f"train.{language}.gz" for language in ("de", "en"))
    pairs = timed("read and match 2 x 29,000 lines", lambda: text_files.read_pairs(source, target, ("de", "en")))
    vocabulary = timed("vocabulary, BPE", lambda: Vocabulary.train(pairs.source, pairs.target, size=SIZE))
    timed("vocabulary, unigram", lambda: Vocabulary.train(pairs.source, pairs.target, size=SIZE, kind="unigram"))
    sentences = timed("encode", lambda: Sentences.of(pairs, vocabulary))
    batches = timed("plan batches", lambda: TokenBatches(sentences.lengths, BUDGET, 0))
    timed("pad the batches of an epoch", lambda: [sentences.__getitems__(batch) for batch in batches])
    random = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(0))
    print(f"tokens that are no padding: {filled(sentences, list(batches)):.0%} in {len(batches)} batches by tokens")
    print(f"tokens that are no padding: {filled(sentences, random.split(64)):.0%} in random batches of 64 pairs")


def timed(what: str, step: Callable[[], Any]) -> Any:
    """What the step gives, having printed the median of its seconds."""
    seconds, found = [], None
    for _ in range(REPEATS):
        start = time.perf_counter()
        found = step()
        seconds.append(time.perf_counter() - start)
    print(f"{what}: {statistics.median(seconds):.3f} s")
    return found


def filled(sentences: Sentences, batches: Any) -> float:
    """The share of both sides' tokens that are no padding."""
    source, target = sentences.features.lengths, sentences.target.lengths
    whole = sum(len(batch) * int(source[batch].max() + target[batch].max()) for batch in batches)
    return int(source.sum() + target.sum()) / whole


if __name__ == "__main__":
    if "LABO_DATA" not in os.environ:
        sys.exit("LABO_DATA names no folder.")
    measure(Path(os.environ["LABO_DATA"]) / "multi30k")
