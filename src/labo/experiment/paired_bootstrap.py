"""The paired bootstrap between translators of one seed: one line per pair in the comparison's folder.

What imports torch is imported only where something is measured: most reports only read what was.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labo import machine
from labo.experiment.progress import ProgressReporter
from labo.records import lock
from labo.records.comparison import BOOTSTRAP, Recorded
from labo.records.measurements import PairKey
from labo.records.storage import append_line, drop_cut_line, read_object
from labo.records.trial import HYPOTHESES, RUN, Job, read_translations

# How often the test sentences are resampled.
DRAWS = 1000


@dataclass(frozen=True)
class _Texts:
    """The translations of a pair, their references, and the options of BLEU for them."""

    baseline: list[str]
    method: list[str]
    references: list[str]
    options: dict[str, Any]

    @property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for lines in (self.baseline, self.method, self.references):
            digest.update("\n".join(lines).encode() + b"\0")
        return digest.hexdigest()[:16]


def missing(recorded: Recorded, baseline: str, tasks: Collection[str]) -> list[Job]:
    """The translators whose pair with the baseline of their seed is not measured, or on other translations.

    Args:
        recorded: the comparison.
        baseline: the method that the others are compared with.
        tasks: translation tasks of the comparison.
    """
    jobs, _ = recorded.finished_jobs(tasks, HYPOTHESES)
    digests = {_key(baseline, job): (job, texts.digest) for job, texts in _pairs(baseline, jobs)}
    known = recorded.bootstrap
    return [job for key, (job, digest) in digests.items() if key not in known or known[key].digest != digest]


def measure(recorded: Recorded, baseline: str, tasks: Collection[str], reporter: ProgressReporter) -> None:
    """Compare the translators that are `missing` with the baseline of their seed, and add a line for each.

    Raises:
        UserError: sacreBLEU is not installed, or another process holds the folder.
    """
    jobs = missing(recorded, baseline, tasks)
    if not jobs:
        return
    from labo.metrics.translation import paired_bootstrap

    baselines = [job for job in recorded.finished_jobs(tasks, HYPOTHESES)[0] if job.trial.method == baseline]
    path = recorded.directory / BOOTSTRAP
    with lock.hold(recorded.directory):
        drop_cut_line(path)  # its pair is missing
        reporter.begin(len(jobs), 0)
        reporter.phase("paired bootstrap over test sentences")
        for job, texts in _pairs(baseline, [*baselines, *jobs]):
            start = time.monotonic()
            result = paired_bootstrap(texts.baseline, texts.method, texts.references, n=DRAWS, **texts.options)
            line = _line(baseline, job, texts, result)
            line |= {"seconds": round(time.monotonic() - start, 3), "versions": machine.versions()}
            append_line(path, line)
            reporter.finished(job, line)


def _line(baseline: str, job: Job, texts: _Texts, result: Mapping[str, Any]) -> dict[str, Any]:
    trial = job.trial
    line = {"task": trial.task, "method": trial.method, "seed": trial.seed, "baseline": baseline}
    line |= {"bleu": result["system"], "baseline_bleu": result["baseline"], "difference": result["difference"]}
    return {**line, "p": result["p"], "draws": DRAWS, "signature": result["signature"], "digest": texts.digest}


def _pairs(baseline: str, jobs: Sequence[Job]) -> Iterator[tuple[Job, _Texts]]:
    """The trials of other methods with the texts of both sides, where these are of the same test sentences."""
    baselines = {(job.trial.task, job.trial.seed): job.folder for job in jobs if job.trial.method == baseline}
    for job in jobs:
        folder = baselines.get((job.trial.task, job.trial.seed))
        if job.trial.method == baseline or folder is None:
            continue
        own, other = read_translations(job.folder), read_translations(folder)
        options = _bleu_options(job.folder)
        if own and other and own[1] == other[1] and options == _bleu_options(folder):
            yield job, _Texts(other[0], own[0], own[1], options)


def _bleu_options(folder: Path) -> dict[str, Any]:
    """The tokenizer that the run of a folder is scored with; runs of earlier versions have the default."""
    preprocessing = (read_object(folder / RUN) or {}).get("preprocessing")
    tokenizer = preprocessing.get("bleu_tokenizer") if isinstance(preprocessing, dict) else None
    return {"tokenizer": tokenizer} if isinstance(tokenizer, str) else {}


def _key(baseline: str, job: Job) -> PairKey:
    return job.trial.task, baseline, job.trial.method, job.trial.seed
