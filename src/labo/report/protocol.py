"""How the comparison was made, in words and small tables: the protocol, the settings, the failures, the versions."""

from __future__ import annotations

import json
from pathlib import PurePosixPath, PureWindowsPath
from statistics import fmean
from typing import Any

from labo.records.comparison import Recorded
from labo.report.verdict import LEVEL, Summary, TaskSummary
from labo.tasks.registry import TEXTS

# Tasks whose data bring no test part (but by a table's split column, which is looked at before); others may.
_WITHOUT_PARTS = ("digits", "table")


def paragraphs(recorded: Recorded, summary: Summary) -> list[str]:
    """The protocol in plain sentences; what the folder does not tell is not claimed."""
    asked = recorded.comparison
    tried, tuning_seeds = _count(asked.get("settings_per_method")), _count(asked.get("tuning_seeds"))
    found = []
    if tried and tuning_seeds:
        found.append(
            f"Choosing. Every method was given the same number of candidate settings, {tried}, each tried on "
            f"{tuning_seeds} tuning seeds that are not among the seeds of the verdict, and judged on the validation "
            "split alone; the best mean over those seeds was chosen. A method without options of its own had its "
            f"candidates in {_own_candidates(summary)}, which every method has too."
        )
    found += _decisions(recorded)
    options = asked.get("task_options")
    given: dict[str, Any] = options if isinstance(options, dict) and len(summary.tasks) == 1 else {}
    if given:
        told = ", ".join(f"{key.replace('_', ' ')} {_without_place(key, value)}" for key, value in given.items())
        wrong = "translations" if summary.tasks[0].main.of_text else "labels"
        noise = (
            f" The wrong {wrong} are in the training and validation splits, the test split is clean: temperatures are "
            f"fitted on {wrong} some of which are wrong, so that scaled measures are not those of a calibrated model."
        )
        found.append(f"Data. The task is {asked.get('task')}, with {told}." + (noise if "label_noise" in given else ""))
    found.append(_trials(summary, split_given=bool(given.get("split"))))
    if asked.get("checkpoint") in ("last", "best"):
        which = "the last epoch" if asked["checkpoint"] == "last" else "the epoch with the best validation value"
        found.append(f"Checkpoint. For every method alike, {which} is what is tested.")
    found.append(_measures(recorded, summary))
    found.append(
        f"Verdict. Differences to {summary.baseline} are paired by seed, over the seeds that both finished, and tested "
        "by the two-sided sign-flip permutation test; Holm's correction is over the methods, within one measure. "
        f"“Better” and “worse” mean a corrected p of at most {LEVEL:g} in the main measure. “Not told apart” "
        "is not “equal”: the interval says how large a difference is still possible. The other measures are shown "
        "for reading; over them nothing is corrected."
    )
    return found


def settings_table(
    recorded: Recorded, task: str
) -> tuple[list[str], list[tuple[str, list[str]]], list[tuple[str, str]]]:
    """(methods, rows of what differs between methods, pairs that all methods share) of the settings that were run."""
    by_method: dict[str, list[dict[str, Any]]] = {}
    for record in recorded.records:
        if str(record["task"]) == task:
            settings = record.get("settings")
            by_method.setdefault(str(record["method"]), []).append(settings if isinstance(settings, dict) else {})
    keys = list(dict.fromkeys(key for runs in by_method.values() for run in runs for key in run))
    differing, shared = [], []
    for key in keys:
        cells = []
        for runs in by_method.values():
            values = list(dict.fromkeys(_short(run[key]) for run in runs if key in run))
            cells.append(" / ".join(values) if values else "–")
        if len(set(cells)) == 1:
            shared.append((key, cells[0]))
        else:
            differing.append((key, cells))
    return list(by_method), differing, shared


def tuning_note(recorded: Recorded, task: str) -> str:
    """How many candidates were tried for each method, counted in tuning.jsonl; empty where it tells nothing."""
    tried: dict[str, set[str]] = {}
    for line in recorded.tuning:
        if str(line.get("task")) == task and "settings" in line and "method" in line:
            tried.setdefault(str(line["method"]), set()).add(json.dumps(line["settings"], sort_keys=True))
    if not tried:
        return ""
    counts = ", ".join(f"{method} {len(settings)}" for method, settings in tried.items())
    return f"Candidates tried: {counts}."


def failures(summary: Summary) -> list[tuple[str, str, str, str, str]]:
    """(task, method, seed, step, reason) of every failed trial."""
    rows = []
    for task in summary.tasks:
        for method in task.methods:
            for failure in method.failures:
                step, reason = failure.get("step"), failure.get("reason")
                rows.append((task.task, method.method, str(failure["seed"]), _short(step), _short(reason)))
    return rows


def versions(recorded: Recorded) -> list[tuple[str, str]]:
    """What was installed, by the records and compare.json; several versions of one thing are all told."""
    found: dict[str, dict[str, None]] = {}
    for source in (recorded.comparison, *recorded.records):
        known = source.get("versions")
        for name, version in (known if isinstance(known, dict) else {}).items():
            found.setdefault(str(name), {})[_short(version)] = None
    return [(name, ", ".join(values)) for name, values in found.items()]


def command(recorded: Recorded) -> str:
    """The command line that asked for this comparison, or an empty string."""
    import shlex

    asked = recorded.comparison.get("command")
    return shlex.join(map(str, asked)) if isinstance(asked, list) else str(asked or "")


def seconds(recorded: Recorded) -> float:
    """The time that the recorded trials took, added up."""
    return sum(value for record in recorded.records if isinstance(value := record.get("seconds"), int | float))


def _decisions(recorded: Recorded) -> list[str]:
    """What methods that decide by themselves chose, and what that cost."""
    by_method: dict[str, list[dict[str, Any]]] = {}
    for record in recorded.records:
        decision = record.get("decision")
        if isinstance(decision, dict) and {"name", "method", "cost"} <= decision.keys():
            by_method.setdefault(str(record["method"]), []).append(decision)
    found = []
    for method, decisions in by_method.items():
        memory = sum(decision["name"] == "strong" for decision in decisions)
        cost = fmean(float(decision["cost"]) for decision in decisions)
        found.append(
            f"Untuned. {method} decided by itself, without candidate settings: LABO with a memory on {memory} of "
            f"{len(decisions)} seeds, label smoothing on the others, by labels held out of the training split. It cost "
            f"{cost:.1f} plain trainings a seed."
        )
    return found


def _trials(summary: Summary, *, split_given: bool) -> str:
    drawn, overlap = "the split, ", " What trains or validates on one seed tests on another, for every method alike."
    if split_given:
        drawn = overlap = ""
    elif not all(task.task in _WITHOUT_PARTS for task in summary.tasks):
        drawn = "the parts that the data do not bring, "
        overlap = (
            " Where the test part is drawn, what trains or validates on one seed tests on another, for every method "
            "alike."
        )
    return (
        f"Trials. One trial is one method on one seed with its chosen settings. A seed draws {drawn}the initialisation "
        "and the order of the examples, the same for every method. The test split is read once per trial." + overlap
    )


def _measures(recorded: Recorded, summary: Summary) -> str:
    classes = [task for task in summary.tasks if not task.main.of_text]
    told = [_of_text(recorded, task, several=len(summary.tasks) > 1) for task in summary.tasks if task.main.of_text]
    if classes:
        told.append(
            "Accuracy, Brier score and expected calibration error (ECE, 15 bins of equal width) are of the test split, "
            "as is the negative log-likelihood (NLL)."
        )
    scaled = "“Scaled” means after one temperature per trial, fitted on the validation split."
    return f"Measures. {' '.join(told)} {scaled} {_top5(summary)}Intervals are 95% by Student's t over seeds."


def _of_text(recorded: Recorded, task: TaskSummary, *, several: bool) -> str:
    known = signatures(recorded, task.task)
    names = {"bleu": "BLEU", "chrf": "chrF"}
    listed = "; ".join(f"{names.get(name, name)} {' and '.join(found)}" for name, found in known.items())
    scored = "BLEU and chrF are sacreBLEU's, of the whole test split and of text, not of pieces"
    scored = f"On {task.task}, {scored}" if several else scored
    told = (
        f"{scored}, with {'these signatures' if len(known) > 1 else 'this signature'}: {listed}."
        if known
        else f"{scored}."
    )
    if any(len(found) > 1 for found in known.values()):
        told += " Scores with other signatures do not compare."
    return (
        f"{told} NLL, perplexity and the expected calibration error (ECE, 15 bins of equal width) are of the tokens of "
        "the test references, each predicted from the source and the tokens before it; they compare where the "
        "vocabulary is the same."
    )


def signatures(recorded: Recorded, task: str) -> dict[str, list[str]]:
    """What sacreBLEU says of how the scores of a task were made: for each metric, all that its records have."""
    found: dict[str, dict[str, None]] = {}
    for record in recorded.records:
        known = record.get("signatures")
        if str(record["task"]) == task and isinstance(known, dict):
            for metric, signature in known.items():
                found.setdefault(str(metric), {})[str(signature)] = None
    return {metric: list(told) for metric, told in found.items()}


def _own_candidates(summary: Summary) -> str:
    kinds = {task.main.of_text for task in summary.tasks}
    varied = {
        False: "the learning rate and the weight decay",
        True: "the learning rate, the dropout and the weight decay",
    }
    return " or ".join(varied[of_text] for of_text in sorted(kinds))


def _top5(summary: Summary) -> str:
    shown = any(measure.key == "top5" for task in summary.tasks for measure in task.measures)
    return "Top-5 is the share of test examples whose class is among the five likeliest. " if shown else ""


def _count(value: Any) -> int:
    if isinstance(value, list):
        return len(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _short(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _without_place(key: str, value: Any) -> str:
    # A report is shown to others; where the file lay on one machine is no business of theirs. A target that is no whole
    # path is a column, in whose name a slash is one.
    whole = key in TEXTS and (PurePosixPath(str(value)).is_absolute() or PureWindowsPath(str(value)).is_absolute())
    return _short(str(value).replace("\\", "/").rpartition("/")[2] if key == "data" or whole else value)
