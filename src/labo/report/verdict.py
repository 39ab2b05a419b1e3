"""From records to a verdict: means, paired differences to the baseline, and which of them are significant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from labo.errors import UserError, unknown
from labo.metrics import significance
from labo.records.comparison import latest
from labo.report import equivalence
from labo.report.cost import Cost
from labo.report.equivalence import DEFAULT_MARGIN, Equivalence
from labo.report.measures import MAIN, MEASURES, Measure, number, p_text, present
from labo.wording import counted

SIGNIFICANCE_LEVEL = 0.05
BETTER, WORSE, BASELINE, NOT_COMPARED = "better", "worse", "baseline", "not compared"
# Where there is no significant difference: of the main measure, and of other measures or over several tasks.
EQUIVALENT, UNDECIDED, NOT_SIGNIFICANT = "practically the same", "undecided", "not significant"


@dataclass(frozen=True)
class Estimate:
    """One measure of one method: its value by seed, their mean, the half width of the 95% interval (None under 2)."""

    values: dict[int, float]
    mean: float | None
    half_width: float | None


@dataclass(frozen=True)
class Difference:
    """Method minus baseline over the seeds that both finished; p two-sided, `p_holm` corrected over the methods.

    `smallest_p` and `smallest_p_holm` are the smallest values that these two can take with so many seeds. The main
    measure has an `equivalence`.
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
    verdict: str = NOT_SIGNIFICANT
    equivalence: Equivalence | None = None


@dataclass(frozen=True)
class MethodSummary:
    """One method on one task.

    `estimates` and `differences` are keyed by measure, `sentence` states the verdict, `cost` is of its finished trials.
    """

    method: str
    finished: int
    failures: tuple[dict[str, Any], ...]
    estimates: dict[str, Estimate]
    differences: dict[str, Difference] = field(default_factory=dict)
    verdict: str = NOT_COMPARED
    sentence: str = ""
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class TaskSummary:
    """All methods on one task, in the order of the records; `main` is the measure that the verdict is about.

    `measures` are those of the leaderboard, `further` those of other tables.
    """

    task: str
    baseline: str
    main: Measure
    measures: tuple[Measure, ...]
    methods: tuple[MethodSummary, ...]
    further: tuple[Measure, ...] = ()

    @property
    def costs(self) -> dict[str, Cost]:
        """The cost of each method."""
        return {method.method: method.cost for method in self.methods}

    def ranked(self) -> list[MethodSummary]:
        """The methods by their mean of the main measure, the best first; those without a value last."""
        sign = -1.0 if self.main.higher_is_better else 1.0

        def rank(method: MethodSummary) -> tuple[bool, float]:
            mean = method.estimates[self.main.key].mean
            return mean is None, sign * (mean or 0.0)

        return sorted(self.methods, key=rank)

    def baseline_last(self) -> list[MethodSummary]:
        """The methods as `ranked`, but the baseline after all others."""
        return sorted(self.ranked(), key=lambda method: method.verdict == BASELINE)


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
    """The verdict on a folder of records; `overall` is empty with a single task, `margin` is in points."""

    baseline: str
    tasks: tuple[TaskSummary, ...]
    overall: tuple[Overall, ...]
    margin: float = DEFAULT_MARGIN


def summarize_records(
    records: Sequence[dict[str, Any]],
    baseline: str | None = None,
    preferred: str | None = None,
    margin: float = DEFAULT_MARGIN,
) -> Summary:
    """The verdict on `records`; differences within ±`margin` points of the main measure are practically none.

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
    tasks = tuple(_task(task, group, baseline, margin) for task, group in by_task.items())
    return Summary(baseline, tasks, _overall(tasks, baseline) if len(tasks) > 1 else (), margin)


def finding(task: TaskSummary) -> str:
    """The verdict on a task in one sentence: which methods are better than the baseline, and by how much."""
    main = task.main
    better = [summary for summary in task.ranked() if summary.verdict == BETTER]
    baseline = next((summary for summary in task.methods if summary.method == task.baseline), None)
    mean = None if baseline is None else baseline.estimates[main.key].mean
    value = "" if mean is None else f" ({main.value(mean)})"
    if not better:
        same = [summary.method for summary in task.ranked() if summary.verdict == EQUIVALENT]
        verb = "is" if len(same) == 1 else "are"
        practically = f"; {_enumerate(same)} {verb} practically the same" if same else ""
        return f"On {task.task} no method is significantly better than {task.baseline}{value}{practically}."
    differences = [summary.differences[main.key] for summary in better]
    names = _enumerate(
        [f"{summary.method} ({main.value(summary.differences[main.key].method_mean)})" for summary in better]
    )
    gains = _enumerate([main.signed(difference.mean).lstrip("+−-") for difference in differences])
    fewest_seeds = min(len(difference.seeds) for difference in differences)
    p = max(difference.p_holm for difference in differences)
    phrase = p_phrase(p) if len(better) == 1 or p < 0.001 else f"p ≤ {p_text(p)}"
    return (
        f"On {task.task} {names} {'is' if len(better) == 1 else 'are'} better than {task.baseline}{value}, by {gains}"
        f"{main.difference_unit} ({phrase} after Holm, {counted(fewest_seeds, 'seed')})."
    )


def _enumerate(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def estimate(values: dict[int, float]) -> Estimate:
    """Mean and 95% interval (Student t) of one measure over seeds."""
    if len(values) < 2:
        return Estimate(values, next(iter(values.values()), None), None)
    mean, half_width = significance.mean_interval(list(values.values()))
    return Estimate(values, mean, half_width)


def _task(task: str, records: list[dict[str, Any]], baseline: str, margin: float) -> TaskSummary:
    keys = {key for record in records for key in record.get("metrics") or {}}
    everything = present(keys, group=None)
    measures = tuple(present(keys)) or (MEASURES["accuracy"],)
    further = tuple(measure for measure in everything if measure not in measures)
    main = next((measure for measure in measures if measure.key in MAIN), measures[0])
    by_method: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_method.setdefault(str(record["method"]), []).append(record)
    methods = {name: _method(name, group, (*measures, *further)) for name, group in by_method.items()}
    for measure in (*measures, *further):
        own_margin = margin / measure.factor if measure == main else None
        for name, difference in _differences(methods, baseline, measure, own_margin).items():
            methods[name].differences[measure.key] = difference
    judged = tuple(_with_verdict(summary, task, baseline, main) for summary in methods.values())
    return TaskSummary(task, baseline, main, measures, judged, further)


def _method(name: str, records: list[dict[str, Any]], measures: Sequence[Measure]) -> MethodSummary:
    finished = sorted((record for record in records if not record.get("failed")), key=lambda record: record["seed"])
    failures = tuple(
        {"seed": record["seed"], **_failure(record["failed"])} for record in records if record.get("failed")
    )
    estimates = {}
    for measure in measures:
        values = {record["seed"]: number((record.get("metrics") or {}).get(measure.key)) for record in finished}
        estimates[measure.key] = estimate({seed: value for seed, value in values.items() if value is not None})
    return MethodSummary(name, len(finished), failures, estimates, cost=Cost.of(finished))


def _failure(failed: Any) -> dict[str, Any]:
    return (
        {"step": failed.get("step"), "reason": failed.get("reason")} if isinstance(failed, dict) else {"reason": failed}
    )


def _differences(
    methods: dict[str, MethodSummary], baseline: str, measure: Measure, margin: float | None
) -> dict[str, Difference]:
    if baseline not in methods:
        return {}
    reference = methods[baseline].estimates[measure.key].values
    differences = {}
    for name, summary in methods.items():
        values = summary.estimates[measure.key].values
        seeds = tuple(seed for seed in values if seed in reference)
        if name != baseline and seeds:
            differences[name] = _difference(seeds, values, reference)
    if not differences:
        return {}
    smallest = min(difference.smallest_p for difference in differences.values())
    corrected = significance.holm([difference.p for difference in differences.values()])
    for (name, difference), p_holm in zip(list(differences.items()), corrected, strict=True):
        # Holm multiplies the smallest p by the number of methods and is monotone, so nothing falls below this.
        smallest_p_holm = min(1.0, max(difference.smallest_p, smallest * len(differences)))
        verdict = _judge(difference.mean if measure.higher_is_better else -difference.mean, p_holm)
        differences[name] = replace(difference, p_holm=p_holm, smallest_p_holm=smallest_p_holm, verdict=verdict)
    return differences if margin is None else _with_equivalence(differences, margin)


def _with_equivalence(differences: dict[str, Difference], margin: float) -> dict[str, Difference]:
    """The differences with their equivalence, which decides where none is significant."""
    values = [difference.values for difference in differences.values()]
    judged = {}
    measured = equivalence.measure(values, margin, SIGNIFICANCE_LEVEL)
    for (name, difference), found in zip(differences.items(), measured, strict=True):
        verdict = difference.verdict
        if verdict == NOT_SIGNIFICANT:
            verdict = EQUIVALENT if found.p_holm <= SIGNIFICANCE_LEVEL else UNDECIDED
        judged[name] = replace(difference, verdict=verdict, equivalence=found)
    return judged


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
    if p > SIGNIFICANCE_LEVEL or gain == 0:
        return NOT_SIGNIFICANT
    return BETTER if gain > 0 else WORSE


def _with_verdict(summary: MethodSummary, task: str, baseline: str, main: Measure) -> MethodSummary:
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
    own = summary.estimates[main.key]
    if own.mean is None:
        return f"{summary.method} is the baseline, and has no finished trial."
    interval = f" ± {main.spread(own.half_width)}" if own.half_width is not None else ""
    value = f"{main.value(own.mean)}{interval}"
    return f"{summary.method} is the baseline: {main.noun} {value} over {counted(len(own.values), 'seed')}."


def _sentence(method: str, baseline: str, main: Measure, difference: Difference) -> str:
    count, found = len(difference.seeds), difference.equivalence
    assert found is not None
    margin = f"{found.margin * main.factor:g}{main.difference_unit or ' ' + main.label}"
    opening = {
        EQUIVALENT: f"{method} is practically the same as {baseline}",
        UNDECIDED: f"Undecided between {method} and {baseline}",
    }.get(difference.verdict, f"{method} is {difference.verdict} than {baseline}")
    numbers = f"{main.noun} {main.value(difference.method_mean)} against {main.value(difference.baseline_mean)}"
    size = f"a paired difference of {main.signed(difference.mean)}{main.difference_unit}"
    if difference.half_width == 0:
        size += " (the same on every seed, so that no interval can be given)"
    elif difference.half_width is not None:
        low, high = difference.mean - difference.half_width, difference.mean + difference.half_width
        size += f" (95% interval {main.signed(low)} to {main.signed(high)})"
    tested = f"{opening}: {numbers}, {size} over {counted(count, 'seed')}; {p_phrase(difference.p_holm)} after Holm."
    within = f"within ±{margin} (TOST, {p_phrase(found.p_holm)} after Holm)"
    if difference.verdict == EQUIVALENT:
        return f"{tested} The difference is {within}."
    if difference.verdict != UNDECIDED:
        return f"{tested} The difference is small, though: {within}." if found.p_holm <= SIGNIFICANCE_LEVEL else tested
    if difference.smallest_p_holm > SIGNIFICANCE_LEVEL:
        tested += (
            " With so few seeds nothing can be significant: after Holm, the smallest p they can reach is "
            f"{p_text(difference.smallest_p_holm)}."
        )
    return f"{tested} {equivalence.advice(found, count, margin)}"


def _overall(tasks: Sequence[TaskSummary], baseline: str) -> tuple[Overall, ...]:
    # method -> task -> gains over the baseline by seed, positive where the method is better
    gains: dict[str, dict[str, list[float]]] = {}
    for task in tasks:
        sign = 1.0 if task.main.higher_is_better else -1.0
        for summary in task.methods:
            difference = summary.differences.get(task.main.key)
            if difference is not None:
                gains.setdefault(summary.method, {})[task.task] = [sign * value for value in difference.values]
    gains = {method: by_task for method, by_task in gains.items() if len(by_task) > 1}
    p_values = [significance.stratified_sign_flip_test(list(by_task.values())) for by_task in gains.values()]
    corrected = significance.holm(p_values) if p_values else []
    return tuple(
        _overall_of(method, baseline, by_task, p, p_holm)
        for (method, by_task), p, p_holm in zip(gains.items(), p_values, corrected, strict=True)
    )


def _overall_of(method: str, baseline: str, gains: dict[str, list[float]], p: float, p_holm: float) -> Overall:
    better = tuple(task for task, values in gains.items() if fmean(values) > 0)
    worse = tuple(task for task, values in gains.items() if fmean(values) < 0)
    # Each task counts in units of its own spread, as in the test, so that measures of different units compare.
    scaled = [sum(values) / (sum(value * value for value in values) ** 0.5 or 1.0) for values in gains.values()]
    verdict = _judge(sum(scaled), p_holm)
    outcome = "shows no significant difference from" if verdict == NOT_SIGNIFICANT else f"is {verdict} than"
    sentence = (
        f"Over {len(gains)} tasks {method} {outcome} {baseline}: its mean is better on {len(better)} and worse on "
        f"{len(worse)}; {p_phrase(p_holm)} (stratified sign-flip test, Holm)."
    )
    return Overall(method, better, worse, tuple(gains), p, p_holm, verdict, sentence)


def p_phrase(p: float) -> str:
    """`p = 0.016` or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p_text(p)}"
