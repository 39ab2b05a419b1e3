"""How the BLEU of finished translators moves with the width of the beam: a line for each run of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labo.experiment import post_hoc, saved_run
from labo.experiment.beam_lines import BEAMS, measured
from labo.experiment.compare import Watcher
from labo.experiment.executor import Job
from labo.experiment.post_hoc import Measurement, Tell


def scores(run: saved_run.Run, examples: Any, widths: Sequence[int], tell: Tell = lambda share: None) -> dict[str, Any]:
    """BLEU and chrF of the translations of examples, by the width of the beam, as JSON has it."""
    found = {}
    for done, width in enumerate(widths, 1):
        found[str(width)] = run.search_scores(examples, width)
        tell(done / len(widths))
    return found


def measure(folder: Path, jobs: Sequence[Job], widths: Sequence[int], watcher: Watcher) -> None:
    """Measure the translators of a comparison, with a line for each in its beams.jsonl; see `post_hoc.measure`."""
    wanted = Measurement(BEAMS, "translating with other beams", widths, measured, scores)
    post_hoc.measure(folder, jobs, wanted, watcher)
