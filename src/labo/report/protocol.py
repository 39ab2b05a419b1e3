"""How the comparison was made: the protocol, the settings, the failures, and how to reproduce it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from labo.records.comparison import Recorded
from labo.report import provenance
from labo.report.model import Block, Cell, Code, Details, Properties, Section, Table, Text
from labo.report.verdict import SIGNIFICANCE_LEVEL, Summary, TaskSummary

# Tasks whose data bring no test part (except by a table's split column, which is checked first); others may.
_WITHOUT_TEST_PART = ("digits", "table")
# What labo_auto chooses between, by its name in records.
_CHOICES = {name: f"a {name} memory" for name in ("strong", "firm", "steady", "mild")} | {"plain": "label smoothing"}


def sections(recorded: Recorded, summary: Summary) -> list[Section]:
    """The failed trials, where there are any, the protocol, and how to reproduce the comparison."""
    parts = [_failures(summary), Section("Protocol", tuple(paragraphs(recorded, summary))), _reproduction(recorded)]
    return [section for section in parts if section is not None]


def paragraphs(recorded: Recorded, summary: Summary) -> list[Text]:
    """The protocol in plain sentences; what the folder does not say is not claimed."""
    config = recorded.comparison
    candidates, tuning_seeds = _count(config.get("settings_per_method")), _count(config.get("tuning_seeds"))
    texts = []
    if candidates and tuning_seeds:
        seeds = "1 tuning seed that is" if tuning_seeds == 1 else f"{tuning_seeds} tuning seeds that are"
        text = (
            f"Every method was given the same number of candidate settings, {candidates}, each tried on {seeds} not "
            "among the seeds of the verdict, and judged on the validation split alone; the best mean over those seeds "
            "was chosen. A method without options of its own had its candidates in "
            f"{_shared_candidates(summary)}, which every method has too."
        )
        texts.append(Text(text, term="Tuning"))
    elif str(config.get("tune", "")).startswith("optuna:"):
        text = (
            "Settings were searched by Optuna (TPE, median pruning) with the same budget for every method, "
            f"{str(config['tune']).partition(':')[2]} plain trainings, over the method's options, the optimizer's "
            "settings and the number of epochs, on tuning seeds that are not among the seeds of the verdict. They were "
            "judged on the validation split alone; the best mean over those seeds was chosen."
        )
        texts.append(Text(text, term="Tuning"))
    texts += _decisions(recorded)
    value = config.get("task_options")
    options: dict[str, Any] = value if isinstance(value, dict) and len(summary.tasks) == 1 else {}
    if options:
        texts.append(Text(_data(config.get("task"), options, of_text=summary.tasks[0].main.of_text), term="Data"))
    texts.append(Text(_trials(summary, split_given=bool(options.get("split"))), term="Trials"))
    if config.get("checkpoint") in ("last", "best"):
        which = "the last epoch" if config["checkpoint"] == "last" else "the epoch with the best validation value"
        texts.append(Text(f"For every method alike, {which} is what is tested.", term="Checkpoint"))
    texts.append(Text(_measures(recorded, summary), term="Measures"))
    text = (
        f"Differences to {summary.baseline} are paired by seed, over the seeds that both finished, and tested "
        "by the two-sided sign-flip permutation test; Holm's correction is over the methods, within one measure. "
        f"“Better” and “worse” mean significantly so: a corrected p of at most {SIGNIFICANCE_LEVEL:g} in the main "
        f"measure. “Practically the same” means that the difference is within ±{summary.margin:g} points by two "
        "one-sided paired t-tests (TOST), Holm's correction over the methods again; everything else is undecided. The "
        "number of further seeds is what a t-test would take, with a power of 0.8, if the mean and the spread of these "
        "seeds were the true ones: a figure to plan a new comparison by, on seeds of its own. The other measures are "
        "shown for reading; over them nothing is corrected."
    )
    return [*texts, Text(text, term="Verdict")]


def settings(recorded: Recorded, task: str) -> Section | None:
    """The settings that the methods ran with: a table of what differs, a list of what they share."""
    by_method: dict[str, list[dict[str, Any]]] = {}
    for record in recorded.records:
        if str(record["task"]) == task:
            own = record.get("settings")
            by_method.setdefault(str(record["method"]), []).append(own if isinstance(own, dict) else {})
    keys = list(dict.fromkeys(key for runs in by_method.values() for run in runs for key in run))
    rows, shared = [], []
    for key in keys:
        values = []
        for runs in by_method.values():
            distinct = list(dict.fromkeys(provenance.short(run[key]) for run in runs if key in run))
            values.append(" / ".join(distinct) if distinct else "–")
        if len(set(values)) == 1:
            shared.append((key, values[0]))
        else:
            rows.append((Cell(key), *map(Cell, values)))
    blocks: list[Block] = [Table("Settings", ("Setting", *by_method), tuple(rows))] if rows else []
    if shared:
        blocks.append(Details("Settings that all methods share", (Properties(tuple(shared)),)))
    counts = _candidate_counts(recorded, task)
    if counts:
        listed = ", ".join(f"{method} {count}" for method, count in counts.items())
        blocks.append(Text(f"Candidates tried: {listed}.", "caption"))
    return Section("Settings chosen", tuple(blocks)) if blocks else None


def _candidate_counts(recorded: Recorded, task: str) -> dict[str, int]:
    """How many candidates were tried for each method, by the lines of tuning.jsonl."""
    tried: dict[str, set[str]] = {}
    for line in recorded.tuning:
        if str(line.get("task")) == task and "settings" in line and "method" in line:
            tried.setdefault(str(line["method"]), set()).add(json.dumps(line["settings"], sort_keys=True))
    return {method: len(candidates) for method, candidates in tried.items()}


def _failures(summary: Summary) -> Section | None:
    rows = [
        tuple(map(Cell, (task.task, method.method, str(failure["seed"]), *map(provenance.short, _reason(failure)))))
        for task in summary.tasks
        for method in task.methods
        for failure in method.failures
    ]
    columns = ("Task", "Method", "Seed", "Step", "Reason")
    return Section("Failed trials", (Table("Failed trials", columns, tuple(rows), has_prose=True),)) if rows else None


def _reason(failure: dict[str, Any]) -> tuple[Any, Any]:
    return failure.get("step"), failure.get("reason")


def _reproduction(recorded: Recorded) -> Section:
    command = recorded.comparison.get("command")
    line = shlex.join(map(str, command)) if isinstance(command, list) else str(command or "")
    properties = Properties((("trial time, added up", _duration(_seconds(recorded))), *_versions(recorded)))
    signed = Text("The signature names what the numbers depend on, for a paper or a table elsewhere:", "caption")
    signature = (signed, Code(provenance.signature(recorded)))
    return Section("How to reproduce it", (*((Code(line),) if line else ()), *signature, properties))


def _versions(recorded: Recorded) -> list[tuple[str, str]]:
    """What was installed, by compare.json and the records; where versions differ, all of them."""
    by_name: dict[str, dict[str, None]] = {}
    for source in (recorded.comparison, *recorded.records):
        versions = source.get("versions")
        for name, version in (versions if isinstance(versions, dict) else {}).items():
            by_name.setdefault(str(name), {})[provenance.short(version)] = None
    return [(name, ", ".join(versions)) for name, versions in by_name.items()]


def _seconds(recorded: Recorded) -> float:
    return sum(value for record in recorded.records if isinstance(value := record.get("seconds"), int | float))


def _decisions(recorded: Recorded) -> list[Text]:
    """What the methods that choose their settings by themselves chose, and its cost."""
    by_method: dict[str, list[dict[str, Any]]] = {}
    for record in recorded.records:
        decision = record.get("decision")
        if isinstance(decision, dict) and {"name", "method", "cost"} <= decision.keys():
            by_method.setdefault(str(record["method"]), []).append(decision)
    texts = []
    for method, decisions in by_method.items():
        names = [_CHOICES.get(str(decision["name"]), str(decision["name"])) for decision in decisions]
        counts = [f"{name} on {names.count(name)}" for name in dict.fromkeys(names)]
        cost = fmean(float(decision["cost"]) for decision in decisions)
        text = (
            f"{method} decided by itself, without candidate settings, by labels held out of the training split: "
            f"{', '.join(counts)} of {len(decisions)} seeds. It cost {cost:.1f} plain trainings a seed."
        )
        if wrong := [share for decision in decisions if (share := _wrong(decision)) is not None]:
            low, high = min(wrong), max(wrong)
            text += f" By its noise channel {low:.1%} to {high:.1%} of the labels are wrong, depending on the seed."
        texts.append(Text(text, term="Untuned"))
    return texts


def _wrong(decision: Mapping[str, Any]) -> float | None:
    """The share of wrong labels that a decision estimated; None in records without it."""
    wrong = (decision.get("channel") or {}).get("wrong")
    return float(wrong) if isinstance(wrong, int | float) else None


def _data(task: Any, options: dict[str, Any], *, of_text: bool) -> str:
    listed = ", ".join(
        f"{key.replace('_', ' ')} {provenance.without_folder(key, value)}" for key, value in options.items()
    )
    text = f"The task is {task}, with {listed}."
    if "label_noise" not in options:
        return text
    wrong = "translations" if of_text else "labels"
    return (
        f"{text} The wrong {wrong} are in the training and validation splits, the test split is clean: temperatures "
        f"are fitted on {wrong} some of which are wrong, so that scaled measures are not those of a calibrated model."
    )


def _trials(summary: Summary, *, split_given: bool) -> str:
    drawn, overlap = "the split, ", " What trains or validates on one seed tests on another, for every method alike."
    if split_given:
        drawn = overlap = ""
    elif not all(task.task in _WITHOUT_TEST_PART for task in summary.tasks):
        drawn = "the parts that the data do not bring, "
        overlap = (
            " Where the test part is drawn, what trains or validates on one seed tests on another, for every method "
            "alike."
        )
    return (
        f"One trial is one method on one seed with its chosen settings. A seed draws {drawn}the initialisation "
        "and the order of the examples, the same for every method. The test split is read once per trial." + overlap
    )


def _measures(recorded: Recorded, summary: Summary) -> str:
    several = len(summary.tasks) > 1
    parts = [_text_measures(recorded, task, several=several) for task in summary.tasks if task.main.of_text]
    if not all(task.main.of_text for task in summary.tasks):
        parts.append(
            "Accuracy, Brier score and expected calibration error (ECE, 15 bins of equal width) are of the test split, "
            "as is the negative log-likelihood (NLL)."
        )
    parts.append("“Scaled” means after one temperature per trial, fitted on the validation split.")
    if any(measure.key == "top5" for task in summary.tasks for measure in task.measures):
        parts.append("Top-5 is the share of test examples whose class is among the five likeliest.")
    parts.append("Intervals are 95% by Student's t over seeds.")
    return " ".join(parts)


def _text_measures(recorded: Recorded, task: TaskSummary, *, several: bool) -> str:
    by_metric = _signatures(recorded, task.task)
    names = {"bleu": "BLEU", "chrf": "chrF"}
    listed = "; ".join(f"{names.get(name, name)} {' and '.join(known)}" for name, known in by_metric.items())
    text = "BLEU and chrF are sacreBLEU's, of the whole test split and of text, not of pieces"
    text = f"On {task.task}, {text}" if several else text
    if by_metric:
        text += f", with {'these signatures' if len(by_metric) > 1 else 'this signature'}: {listed}"
    text += "."
    if any(len(known) > 1 for known in by_metric.values()):
        text += " Scores with other signatures do not compare."
    return (
        f"{text} NLL, perplexity and the expected calibration error (ECE, 15 bins of equal width) are of the tokens of "
        "the test references, each predicted from the source and the tokens before it; they compare where the "
        "vocabulary is the same."
    )


def _signatures(recorded: Recorded, task: str) -> dict[str, list[str]]:
    """SacreBLEU's signatures of each metric in the records of a task."""
    by_metric: dict[str, dict[str, None]] = {}
    for record in recorded.records:
        signatures = record.get("signatures")
        if str(record["task"]) == task and isinstance(signatures, dict):
            for metric, signature in signatures.items():
                by_metric.setdefault(str(metric), {})[str(signature)] = None
    return {metric: list(signatures) for metric, signatures in by_metric.items()}


def _shared_candidates(summary: Summary) -> str:
    """What varies between the candidates of a method without options of its own."""
    varied = {
        False: "the learning rate and the weight decay",
        True: "the learning rate, the dropout and the weight decay",
    }
    return " or ".join(varied[of_text] for of_text in sorted({task.main.of_text for task in summary.tasks}))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _count(value: Any) -> int:
    if isinstance(value, list):
        return len(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
