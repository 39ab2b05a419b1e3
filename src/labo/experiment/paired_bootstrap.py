"""The paired bootstrap between translators of one seed: a line for each pair in a comparison's bootstrap.jsonl."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labo.experiment import translations
from labo.experiment.bootstrap_lines import BOOTSTRAP, DRAWS, Pair, measured
from labo.records.storage import append_line, drop_cut_line, read_lines

if TYPE_CHECKING:
    from labo.experiment.compare import Watcher

# What imports torch is imported only where something is measured: a report reads what was.


@dataclass(frozen=True)
class Run:
    """A finished run of a comparison and its folder."""

    task: str
    method: str
    seed: int
    folder: Path


@dataclass(frozen=True)
class _Texts:
    """What one pair is measured on."""

    baseline: list[str]
    method: list[str]
    references: list[str]

    @property
    def digest(self) -> str:
        return translations.digest((self.baseline, self.method, self.references))


def missing(folder: Path, baseline: str, runs: Sequence[Run]) -> list[Run]:
    """The runs whose pair with the baseline of their seed can be measured and is not, or not on what is there now.

    Args:
        folder: of the comparison.
        baseline: the method that the others are compared with.
        runs: finished translators, the baseline's among them.
    """
    known = measured(read_lines(folder / BOOTSTRAP))
    digests = {_pair(baseline, run): (run, texts.digest) for run, texts in _paired(baseline, runs)}
    return [run for pair, (run, digest) in digests.items() if pair not in known or known[pair].digest != digest]


def measure(folder: Path, baseline: str, runs: Sequence[Run], watcher: Watcher) -> None:
    """Measure some runs against the baseline's of their seed, and add a line for each to the bootstrap.jsonl.

    Args:
        folder, baseline: as in `missing`.
        runs: those that `missing` gave, and the baseline's.
        watcher: is told how it goes.

    Raises:
        UserError: sacreBLEU is not there, or another process holds the folder.
    """
    from labo import machine
    from labo.experiment.executor import Job
    from labo.experiment.run_trial import Trial
    from labo.metrics.translation import paired_bootstrap
    from labo.records import lock

    with lock.hold(folder):
        drop_cut_line(folder / BOOTSTRAP)  # its pair is among those that are missing
        watcher.begin(sum(run.method != baseline for run in runs), 0)
        watcher.phase("paired bootstrap over test sentences")
        for run, texts in _paired(baseline, runs):
            began = time.monotonic()
            found = paired_bootstrap(texts.baseline, texts.method, texts.references, n=DRAWS)
            line = _line(baseline, run, texts, found)
            line |= {"seconds": round(time.monotonic() - began, 3), "versions": machine.versions()}
            append_line(folder / BOOTSTRAP, line)
            watcher.finished(Job(Trial(run.task, run.method, run.seed, {}), run.folder), line)


def _line(baseline: str, run: Run, texts: _Texts, found: Mapping[str, Any]) -> dict[str, Any]:
    line = {"task": run.task, "method": run.method, "seed": run.seed, "baseline": baseline, "bleu": found["system"]}
    line |= {"baseline_bleu": found["baseline"], "difference": found["difference"], "p": found["p"]}
    return {**line, "draws": DRAWS, "signature": found["signature"], "digest": texts.digest}


def _paired(baseline: str, runs: Sequence[Run]) -> Iterator[tuple[Run, _Texts]]:
    """The runs of other methods with the texts of both sides, where these are of the same test sentences."""
    theirs = {(run.task, run.seed): run.folder for run in runs if run.method == baseline}
    for run in runs:
        other = theirs.get((run.task, run.seed))
        if run.method == baseline or other is None:
            continue
        mine, reference = translations.read(run.folder), translations.read(other)
        if mine and reference and mine[1] == reference[1]:
            yield run, _Texts(reference[0], mine[0], mine[1])


def _pair(baseline: str, run: Run) -> Pair:
    return run.task, baseline, run.method, run.seed
