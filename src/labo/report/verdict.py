"""From records to a verdict: per method the means, the paired difference to the baseline and whether it is luck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from labo.errors import UserError, unknown
from labo.metrics import significance
from labo.records.comparison import latest
from labo.report.measures import MAIN, MEASURES, Measure, number, p_text, present

LEVEL = 0.05
BETTER, WORSE, NOT_TOLD, BASELINE, NOT_COMPARED = "better", "worse", "not told apart", "baseline", "not compared"


@dataclass(frozen=True)
class Estimate:
    """One measure of one method: its value by seed, their mean, the half width of the 95% interval (None under 2)."""

    values: dict[int, float]
    mean: float | None
    half_width: float | None


@dataclass(frozen=True)
class Difference:
    """Method minus baseline over the seeds that both finished; p two-sided, `p_holm` corrected over the methods.

    `smallest_p` and `smallest_p_holm` are the least that these two could have been with so many seeds.
    """

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    method_mean: float
    baseline_mean: float
    mean: float
    half_width: float | None
    p: float
    smallest_p: float
    p_holm: float = 1.0
    smallest_p_holm: float = 1.0
    verdict: str = NOT_TOLD


@dataclass(frozen=True)
class MethodSummary:
    """One method on one task; `estimates` and `differences` are keyed by measure, `sentence` is the plain verdict."""

    method: str
    finished: int
    failures: tuple[dict[str, Any], ...]
    estimates: dict[str, Estimate]
    differences: dict[str, Difference] = field(default_factory=dict)
    verdict: str = NOT_COMPARED
    sentence: str = ""


@dataclass(frozen=True)
class TaskSummary:
    """All methods on one task, in the order of the records; `main` is the measure that the verdict is about."""

    task: str
    baseline: str
    main: Measure
    measures: tuple[Measure, ...]
    methods: tuple[MethodSummary, ...]

    def ranked(self) -> list[MethodSummary]:
        """The methods by their mean of the main measure, the best first; those without a value last."""
        sign = -1.0 if self.main.higher_is_better else 1.0
        means = {found.method: found.estimates[self.main.key].mean for found in self.methods}
        found = [(mean is None, sign * (mean or 0.0)) for mean in means.values()]
        return [method for _, method in sorted(zip(found, self.methods, strict=True), key=lambda pair: pair[0])]


@dataclass(frozen=True)
class Overall:
    """One method against the baseline over several tasks by the stratified sign-flip test."""

    method: str
    better_on: tuple[str, ...]
    worse_on: tuple[str, ...]
    tasks: tuple[str, ...]
    p: float
    p_holm: float
    verdict: str
    sentence: str


@dataclass(frozen=True)
class Summary:
    """The verdict on a folder of records; `overall` is empty with a single task."""

    baseline: str
    tasks: tuple[TaskSummary, ...]
    overall: tuple[Overall, ...]


def summarize_records(
    records: Sequence[dict[str, Any]], baseline: str | None = None, preferred: str | None = None
) -> Summary:
    """The verdict on `records`.

    `baseline` must be among the methods (else UserError); without it `preferred` is taken where it was run, else
    label_smoothing, else the first method. No records: UserError.
    """
    records = latest(list(records))
    if not records:
        raise UserError("There are no finished trials to summarize.")
    methods = list(dict.fromkeys(str(record["method"]) for record in records))
    if baseline is not None and baseline not in methods:
        raise unknown("method", baseline, methods)
    if baseline is None:
        baseline = next((name for name in (preferred, "label_smoothing") if name in methods), methods[0])
    by_task: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_task.setdefault(str(record["task"]), []).append(record)
    tasks = tuple(_task(task, group, baseline) for task, group in by_task.items())
    return Summary(baseline, tasks, _overall(tasks, baseline) if len(tasks) > 1 else ())


def finding(task: TaskSummary) -> str:
    """The verdict on a task in one sentence: which methods are better than the baseline, and by how much."""
    main = task.main
    better = [found for found in task.ranked() if found.verdict == BETTER]
    baseline = next((found for found in task.methods if found.method == task.baseline), None)
    mean = None if baseline is None else baseline.estimates[main.key].mean
    value = "" if mean is None else f" ({main.value(mean)})"
    if not better:
        return f"On {task.task} no method is significantly better than {task.baseline}{value}."
    differences = [found.differences[main.key] for found in better]
    names = _listed(
        [f"{found.method} ({main.value(of.method_mean)})" for found, of in zip(better, differences, strict=True)]
    )
    gains = _listed([f"{main.signed(of.mean).lstrip('+−-')}" for of in differences])
    least = min(len(of.seeds) for of in differences)
    p = max(of.p_holm for of in differences)
    phrase = p_phrase(p) if len(better) == 1 or p < 0.001 else f"p ≤ {p_text(p)}"
    return (
        f"On {task.task} {names} {'is' if len(better) == 1 else 'are'} better than {task.baseline}{value}, by {gains}"
        f"{main.difference_unit} ({phrase} after Holm, {_seeds(least)})."
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def estimate(values: dict[int, float]) -> Estimate:
    """Mean and 95% interval (Student t) of one measure over seeds."""
    if len(values) < 2:
        return Estimate(values, next(iter(values.values()), None), None)
    mean, half_width = significance.mean_interval(list(values.values()))
    return Estimate(values, mean, half_width)


def _task(task: str, records: list[dict[str, Any]], baseline: str) -> TaskSummary:
    keys = {key for record in records for key in record.get("metrics") or {}}
    measures = tuple(present(keys)) or (MEASURES["accuracy"],)
    main = next((measure for measure in measures if measure.key in MAIN), measures[0])
    by_method: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_method.setdefault(str(record["method"]), []).append(record)
    methods = {name: _method(name, group, measures) for name, group in by_method.items()}
    for measure in measures:
        for name, difference in _differences(methods, baseline, measure).items():
            methods[name].differences[measure.key] = difference
    told = tuple(_tell(summary, task, baseline, main, methods) for summary in methods.values())
    return TaskSummary(task, baseline, main, measures, told)


def _method(name: str, records: list[dict[str, Any]], measures: Sequence[Measure]) -> MethodSummary:
    done = sorted((record for record in records if not record.get("failed")), key=lambda record: record["seed"])
    failures = tuple(
        {"seed": record["seed"], **_failure(record["failed"])} for record in records if record.get("failed")
    )
    estimates = {}
    for measure in measures:
        values = {record["seed"]: number((record.get("metrics") or {}).get(measure.key)) for record in done}
        estimates[measure.key] = estimate({seed: value for seed, value in values.items() if value is not None})
    return MethodSummary(name, len(done), failures, estimates)


def _failure(failed: Any) -> dict[str, Any]:
    return (
        {"step": failed.get("step"), "reason": failed.get("reason")} if isinstance(failed, dict) else {"reason": failed}
    )


def _differences(methods: dict[str, MethodSummary], baseline: str, measure: Measure) -> dict[str, Difference]:
    if baseline not in methods:
        return {}
    reference = methods[baseline].estimates[measure.key].values
    found = {}
    for name, summary in methods.items():
        values = summary.estimates[measure.key].values
        seeds = tuple(seed for seed in values if seed in reference)
        if name != baseline and seeds:
            found[name] = _difference(seeds, values, reference)
    names, floor = list(found), min((difference.smallest_p for difference in found.values()), default=1.0)
    for name, p_holm in zip(names, significance.holm([found[name].p for name in names]) if names else [], strict=True):
        difference = found[name]
        # Holm multiplies the least p by the number of methods and is monotone, so nothing falls below this.
        reach = min(1.0, max(difference.smallest_p, floor * len(names)))
        verdict = _judge(difference.mean if measure.higher_is_better else -difference.mean, p_holm)
        found[name] = replace(difference, p_holm=p_holm, smallest_p_holm=reach, verdict=verdict)
    return found


def _difference(seeds: tuple[int, ...], values: dict[int, float], reference: dict[int, float]) -> Difference:
    paired = {seed: values[seed] - reference[seed] for seed in seeds}
    summary = estimate(paired)
    return Difference(
        seeds,
        tuple(paired.values()),
        fmean(values[seed] for seed in seeds),
        fmean(reference[seed] for seed in seeds),
        fmean(paired.values()),
        summary.half_width,
        significance.sign_flip_test(list(paired.values())),
        significance.smallest_p(len(seeds)),
    )


def _judge(gain: float, p: float) -> str:
    if p > LEVEL or gain == 0:
        return NOT_TOLD
    return BETTER if gain > 0 else WORSE


def _tell(
    summary: MethodSummary, task: str, baseline: str, main: Measure, methods: dict[str, MethodSummary]
) -> MethodSummary:
    difference = summary.differences.get(main.key)
    if summary.method == baseline:
        verdict, sentence = BASELINE, _baseline_sentence(summary, main)
    elif difference is None:
        why = "it has no finished trial" if not summary.finished else f"no seed of {baseline} to pair with is finished"
        verdict, sentence = NOT_COMPARED, f"{summary.method} is not compared with {baseline} on {task}: {why}."
    else:
        verdict = difference.verdict
        sentence = _sentence(summary.method, baseline, main, difference)
    if summary.failures:
        failed, trials = len(summary.failures), summary.finished + len(summary.failures)
        sentence += f" Failed and not in these figures: {failed} of its {trials} trial{'s' * (trials > 1)}."
    return replace(summary, verdict=verdict, sentence=sentence)


def _baseline_sentence(summary: MethodSummary, main: Measure) -> str:
    estimate_ = summary.estimates[main.key]
    if estimate_.mean is None:
        return f"{summary.method} is the baseline, and has no finished trial."
    interval = f" ± {main.spread(estimate_.half_width)}" if estimate_.half_width is not None else ""
    value = f"{main.value(estimate_.mean)}{interval}"
    return f"{summary.method} is the baseline: {_noun(main)} {value} over {_seeds(len(estimate_.values))}."


def _sentence(method: str, baseline: str, main: Measure, difference: Difference) -> str:
    count = len(difference.seeds)
    if difference.verdict == NOT_TOLD:
        which = "this 1 seed" if count == 1 else f"these {count} seeds"
        opening = f"{method} is not told apart from {baseline} by {which}"
    else:
        opening = f"{method} is {difference.verdict} than {baseline}"
    numbers = f"{_noun(main)} {main.value(difference.method_mean)} against {main.value(difference.baseline_mean)}"
    size = f"a paired difference of {main.signed(difference.mean)}{main.difference_unit}"
    if difference.half_width == 0:
        size += " (the same on every seed, so that no interval can be given)"
    elif difference.half_width is not None:
        low, high = difference.mean - difference.half_width, difference.mean + difference.half_width
        size += f" (95% interval {main.signed(low)} to {main.signed(high)})"
    over = "" if difference.verdict == NOT_TOLD else f" over {_seeds(count)}"
    sentence = f"{opening}: {numbers}, {size}{over}; {p_phrase(difference.p_holm)} after Holm."
    if difference.smallest_p_holm > LEVEL:
        reach = p_text(difference.smallest_p_holm)
        sentence += f" So few seeds cannot tell: after Holm, the smallest p they can reach is {reach}."
    return sentence


def _overall(tasks: Sequence[TaskSummary], baseline: str) -> tuple[Overall, ...]:
    pairs: dict[str, dict[str, Difference]] = {}
    signs = {task.task: 1.0 if task.main.higher_is_better else -1.0 for task in tasks}
    for task in tasks:
        for summary in task.methods:
            if task.main.key in summary.differences:
                pairs.setdefault(summary.method, {})[task.task] = summary.differences[task.main.key]
    pairs = {method: found for method, found in pairs.items() if len(found) > 1}
    gains = {
        method: {task: [signs[task] * value for value in difference.values] for task, difference in found.items()}
        for method, found in pairs.items()
    }
    p_values = [significance.stratified_sign_flip_test(list(found.values())) for found in gains.values()]
    corrected = significance.holm(p_values) if p_values else []
    return tuple(
        _overall_of(method, baseline, found, p, p_holm)
        for (method, found), p, p_holm in zip(gains.items(), p_values, corrected, strict=True)
    )


def _overall_of(method: str, baseline: str, gains: dict[str, list[float]], p: float, p_holm: float) -> Overall:
    better = tuple(task for task, values in gains.items() if fmean(values) > 0)
    worse = tuple(task for task, values in gains.items() if fmean(values) < 0)
    # Each task counts in units of its own spread, as in the test: a task in points does not drown one in hundredths.
    scaled = [sum(values) / (sum(value * value for value in values) ** 0.5 or 1.0) for values in gains.values()]
    verdict = _judge(sum(scaled), p_holm)
    is_what = f"not told apart from {baseline}" if verdict == NOT_TOLD else f"{verdict} than {baseline}"
    sentence = (
        f"Over {len(gains)} tasks {method} is {is_what}: its mean is better on {len(better)} and worse on "
        f"{len(worse)}; {p_phrase(p_holm)} (stratified sign-flip test, Holm)."
    )
    return Overall(method, better, worse, tuple(gains), p, p_holm, verdict, sentence)


def p_phrase(p: float) -> str:
    """`p = 0.016` or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p_text(p)}"


def _noun(measure: Measure) -> str:
    return measure.label if measure.label.isupper() or measure.key == "chrf" else measure.label.lower()


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
