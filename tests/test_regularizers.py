"""Every member of the family is checked from its first day: these tests run over the registry."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from labo import LabelRegularizedLoss, LABOLoss, regularizers
from labo.errors import UserError
from labo.outer.trust import Decision
from labo.regularizers import registry
from labo.regularizers.base import BATCH_INPUTS

CLASSES = 5
COUNTS = torch.tensor([10, 5, 0, 3, 2])
OPTIONS = [(name, options) for name in regularizers.available() for options in ({}, *regularizers.candidates(name)[:2])]
OPTIONS += [
    ("label_smoothing", {"convention": "fairseq"}),
    ("label_smoothing", {"convention": "joeynmt", "padding_index": 0}),
    ("confidence_penalty", {"convention": "class_mean"}),
    ("generalized_entropy", {"skew": 0.0}),
    ("generalized_entropy", {"skew": 1.0}),
    ("tf_kd_reg", {"convention": "class_mean", "multiplier": 3.0}),
    ("zipf_smoothing", {"ranking": "dense"}),
    ("zipf_smoothing", {"gold_ranked": True}),
    ("margin_smoothing", {"margin": 1.0}),
    ("acls", {"margin": 1.0}),
    ("gce", {"q": 0.0}),
    ("gce", {"q": 1.0, "epsilon": 0.3}),
    ("sce", {"log_zero": -2.0, "epsilon": 0.3}),
    ("labo", {"prior": "unigram", "alpha": 0.3}),
    ("labo", {"prior": [0.1, 0.2, 0.3, 0.2, 0.2], "alpha": 0.3, "value": "plugin"}),
    ("labo", {"prior": "memory"}),
    ("labo", {"prior": "memory", "epsilon": 0.0}),
    ("labo", {"prior": "memory", "beta": 4.0, "alpha": 0.5, "epsilon": 0.0}),
    ("labo", {"prior": "memory", "beta": 4.0, "alpha": 0.5, "top": 2}),
    ("labo", {"prior": "channel"}),
    ("labo", {"prior": "channel", "alpha": 0.5, "epsilon": 0.0}),
    ("labo", {"prior": "channel", "alpha": 0.5, "epsilon": 0.2, "top": 2}),
]
every = pytest.mark.parametrize(("name", "options"), OPTIONS, ids=lambda value: str(value).replace("'", ""))


class Network(torch.nn.Linear):
    """What stands for a network where a member needs one: inputs (N, CLASSES) to logits."""

    def __init__(self) -> None:
        super().__init__(CLASSES, CLASSES, dtype=torch.float64)
        draw = torch.Generator().manual_seed(2)
        self.weight.data = torch.randn(CLASSES, CLASSES, generator=draw, dtype=torch.float64)
        self.bias.data.zero_()


def member(name: str, options: dict[str, Any]) -> regularizers.Regularizer:
    """A member with all that it needs before the first batch."""
    torch.manual_seed(0)
    made = regularizers.create(name, **options)
    for need in made.missing:
        if need != "optimizer":
            known = {"class_counts": COUNTS + 1, "model": Network(), "teacher": Network(), "examples": 6, "epochs": 4}
            known["kept"] = torch.arange(6)
            draw = torch.Generator().manual_seed(5)
            known["posterior"] = torch.randn(6, CLASSES, generator=draw).softmax(-1)
            known["decision"] = Decision("plain", "label_smoothing", {"epsilon": 0.2}, None, 2.0)
            made.provide(**{need: known[need]})
    if "optimizer" in made.missing:
        made.provide(optimizer=torch.optim.SGD([{"params": made.learnt(), "weight_decay": 0.0}], lr=0.1))
    return made


def told(made: regularizers.Regularizer, at: slice = slice(None)) -> dict[str, Any]:
    """What it needs of the rows `at` of `batch()`."""
    draw = torch.Generator().manual_seed(3)
    inputs, partners = (torch.randn(6, CLASSES, generator=draw, dtype=torch.float64) for _ in range(2))
    dense = torch.randn(6, 4, CLASSES, generator=draw, dtype=torch.float64)
    rows = {"indices": torch.arange(6), "inputs": inputs, "partners": partners, "dense_logits": dense}
    known = {name: value[at] for name, value in rows.items()} | {"epoch": 1, "step": 7, "progress": 0.25}
    return {need: known[need] for need in made.needs if need in BATCH_INPUTS}


def loss_with(
    name: str, options: dict[str, Any], logits: Tensor, target: Tensor, at: slice = slice(None), **more: Any
) -> Tensor:
    """The loss of a fresh member: what it remembers begins anew with every call."""
    made = member(name, options)
    torch.manual_seed(0)
    return LabelRegularizedLoss(made, **more)(logits, target, **told(made, at))


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(6, CLASSES, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.tensor([0, 3, 1, 4, 2, 3])


@every
def test_gradient_is_that_of_the_value(name, options):
    made, (logits, target) = member(name, options), batch()
    if isinstance(made, regularizers.SoftLabelRegularizer) or made.has_constants or options.get("value") == "plugin":
        pytest.skip("parts of it are constant for the gradient; their own tests say which")
    assert torch.autograd.gradcheck(lambda z: loss_with(name, options, z, target), logits.requires_grad_())


@every
def test_labels_are_what_the_gradient_pulls_towards(name, options):
    made, (logits, target) = member(name, options), batch()
    rows = _rows(logits, target, told(made))
    torch.manual_seed(0)
    labels = made.labels(rows)
    strength = getattr(made, "strength", getattr(made, "alpha", None))
    if labels is None or strength is None or not made.pulls_to_labels or options.get("convention") == "joeynmt":
        pytest.skip("it has no labels, or they are not all that its gradient is made of")
    if isinstance(made, regularizers.SoftLabelRegularizer):
        strength = torch.as_tensor(made.strength_of(rows), dtype=torch.float64).reshape(-1, 1)
    torch.testing.assert_close(labels.sum(-1), torch.ones(6, dtype=labels.dtype))
    expected = logits.softmax(-1) - (1 - strength) * F.one_hot(target, CLASSES) - strength * labels
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(loss_with(name, options, logits, target, reduction="sum"), logits)
    torch.testing.assert_close(gradient, expected)


@every
def test_a_masked_batch_equals_the_filtered_batch(name, options):
    logits, target = batch()
    masked = target.clone()
    masked[1::2] = -100
    logits[1] = math.nan
    even = slice(None, None, 2)
    expected = loss_with(name, options, logits[even], target[even], at=even)
    torch.testing.assert_close(loss_with(name, options, logits, masked), expected)
    gone = torch.full_like(target, -100)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(loss_with(name, options, logits, gone), logits)
    assert not gradient.any()


@every
def test_shifted_logits_change_nothing(name, options):
    logits, target = batch()
    shifted, plain = loss_with(name, options, logits + 30, target), loss_with(name, options, logits, target)
    if member(name, options).shift_invariant:
        torch.testing.assert_close(shifted, plain)
    else:
        assert not torch.isclose(shifted, plain)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_the_truth_of_the_rounded_logits(name, options, dtype):
    logits, target = batch(dtype)
    found, truth = loss_with(name, options, logits, target), loss_with(name, options, logits.double(), target)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), truth, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@every
def test_class_weights_and_images(name, options):
    weight, (logits, target) = torch.arange(1.0, CLASSES + 1).double(), batch()
    rows = loss_with(name, options, logits, target, reduction="none")
    weighted = loss_with(name, options, logits, target, weight=weight)
    torch.testing.assert_close(weighted, (weight[target] * rows).sum() / weight[target].sum())
    if set(member(name, options).needs) & {"indices", "inputs", "partners", "dense_logits"}:
        return  # what it is told is told of examples with one label each
    images = logits.T.reshape(1, CLASSES, 2, 3)
    torch.testing.assert_close(loss_with(name, options, images, target.reshape(1, 2, 3)), rows.mean())


@every
def test_one_hot_probabilities_are_indices(name, options):
    if options.get("convention") == "joeynmt":
        pytest.skip("refuses probabilities: padding is an index")
    logits, target = batch()
    found = loss_with(name, options, logits, F.one_hot(target, CLASSES).double())
    torch.testing.assert_close(found, loss_with(name, options, logits, target))


# Whose loss is no mean over the classes that a target mixes: zipf_smoothing ranks the classes that the target gives
# nothing, ls_plus and beta_smoothing have the entropy of the whole label, tf_kd_reg mixes what its teachers say, sce
# has the log of the target.
NOT_MIXED = ("zipf_smoothing", "ls_plus", "beta_smoothing", "tf_kd_reg", "sce")


@every
def test_a_mixed_target_is_smoothed_once(name, options):
    """As mixup means it: the loss of a mixed target is the mixed loss, however often a target was mixed before."""
    if options.get("convention") == "joeynmt" or name in NOT_MIXED:
        pytest.skip("it takes no mixed targets, or its loss of one is another, which its own tests have")
    logits, target = batch()
    first, second = (F.one_hot(each, CLASSES).double() for each in (target, target.flip(0)))
    mixed = loss_with(name, options, logits, 0.3 * first + 0.7 * second)
    apart = [loss_with(name, options, logits, each) for each in (first, second)]
    torch.testing.assert_close(mixed, 0.3 * apart[0] + 0.7 * apart[1])


def test_mixed_targets_of_label_smoothing_and_labo_by_hand():
    logits, _ = batch()
    log_p, target = logits.log_softmax(-1), batch()[0].flip(0).softmax(-1)
    found = loss_with("label_smoothing", {"epsilon": 0.3}, logits, target, reduction="none")
    smoothed = 0.7 * target + 0.3 / CLASSES  # once, whatever the target has on the other classes already
    torch.testing.assert_close(found, -(smoothed * log_p).sum(-1))
    label = (log_p / 4).softmax(-1)
    inner = (-label * log_p + 4 * label * (label * CLASSES).log()).sum(-1)
    found = loss_with("labo", {"alpha": 0.3, "beta": 4.0}, logits, target, reduction="none")
    torch.testing.assert_close(found, 0.7 * -(target * log_p).sum(-1) + 0.3 * inner)


@every
@pytest.mark.parametrize("probabilities", [False, True])
def test_a_batch_without_rows_gives_zero(name, options, probabilities):
    logits = torch.zeros(0, CLASSES, dtype=torch.float64, requires_grad=True)
    target = torch.zeros(0, CLASSES, dtype=torch.float64) if probabilities else torch.zeros(0, dtype=torch.long)
    if probabilities and options.get("convention") == "joeynmt":
        pytest.skip("it takes class indices")
    if name == "dlb":
        pytest.skip("it has no last batch to keep, and says so")
    loss = loss_with(name, options, logits, target, at=slice(0, 0))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, logits)[0].shape == (0, CLASSES)


@every
def test_options_may_be_numbers_of_numpy(name, options):
    def of_numpy(value: Any) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return np.asarray(value, np.float32 if isinstance(value, float) else np.int64)[()] if number else value

    logits, target = batch()
    given = {**registry._variant(name)[0].defaults(options), **options}
    numbers = {option: of_numpy(value) for option, value in given.items()}
    torch.testing.assert_close(loss_with(name, numbers, logits, target), loss_with(name, given, logits, target))
    assert json.loads(json.dumps(member(name, numbers).options())).keys() == given.keys()


@every
def test_total_over_count_is_the_mean(name, options):
    logits, target = batch()
    made, weight = member(name, options), torch.rand(CLASSES, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    total, count = LabelRegularizedLoss(made, weight=weight).total_and_count(logits, target, **told(made))
    torch.testing.assert_close(total / count, loss_with(name, options, logits, target, weight=weight))


@every
def test_what_it_remembers_is_in_its_state(name, options):
    known, (logits, target) = member(name, options), batch()
    for step in range(3):  # so that there is something to remember
        LabelRegularizedLoss(known)(logits + step, target, **told(known))
    fresh = member(name, options) if set(known.needs) - {"class_counts"} else regularizers.create(name, **options)
    fresh.load_state_dict({key: value.clone() for key, value in known.state_dict().items()})
    assert fresh.missing == ()
    losses = []
    for made in (fresh, known):
        torch.manual_seed(0)
        criterion = LabelRegularizedLoss(made)
        losses.append([criterion(logits, target, **told(made)), criterion(logits + 1, target, **told(made))])
    assert losses[0] == losses[1]


@every
def test_its_options_make_it_again(name, options):
    known = member(name, options)
    assert known.options().items() >= options.items() or name == "labo"
    again = regularizers.create(name, **known.options())
    assert again.options() == known.options()
    assert set(known.options()) == set(regularizers.describe(name, options).defaults)


@every
def test_it_refuses_to_work_without_what_it_needs(name, options):
    fresh, (logits, target) = regularizers.create(name, **options), batch()
    if not fresh.needs:
        pytest.skip("needs nothing")
    first = (*fresh.missing, *fresh.missing_from({}))[0]
    with pytest.raises(UserError, match=f"'{name}' needs {first}: (call|pass)"):
        LabelRegularizedLoss(fresh)(logits, target)
    known = member(name, options)
    for need in known.missing_from({}):
        rest = {key: value for key, value in told(known).items() if key != need}
        with pytest.raises(UserError, match=f"'{name}' needs {need}: pass {need}="):
            LabelRegularizedLoss(known)(logits, target, **rest)


@every
def test_in_evaluation_it_asks_for_nothing_of_a_batch(name, options):
    known, (logits, target) = member(name, options), batch()
    loss = LabelRegularizedLoss(known).eval()(logits, target)
    if known.missing_from({}):
        torch.testing.assert_close(loss, F.cross_entropy(logits, target))


@pytest.mark.parametrize("name", regularizers.available())
def test_description_and_candidates(name):
    described = regularizers.describe(name)
    assert described.summary
    assert all(set(options) <= set(described.defaults) for options in regularizers.candidates(name))
    with pytest.raises(UserError, match="other"):
        member(name, {}).provide(other=1)
    if described.defaults:
        longest = max(described.defaults, key=len)
        with pytest.raises(UserError, match=f"nearest is '{longest}'"):
            regularizers.create(name, **{longest[:-1]: 2.0})


# Published formulas, worked with plain tensors.


def loss_of(name: str, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    logits, target = batch()
    return loss_with(name, options, logits, target, reduction="none"), logits.log_softmax(-1), target


def test_none_and_label_smoothing_are_pytorchs():
    logits, target = batch()
    torch.testing.assert_close(loss_of("none")[0], F.cross_entropy(logits, target, reduction="none"))
    expected = F.cross_entropy(logits, target, reduction="none", label_smoothing=0.3)
    torch.testing.assert_close(loss_of("label_smoothing", epsilon=0.3)[0], expected)
    at_inf = loss_of("labo", alpha=0.3, beta=math.inf)[0]
    torch.testing.assert_close(at_inf, expected)


def test_fairseq_smoothing_is_pytorchs_with_less_mass():
    found = loss_of("label_smoothing", epsilon=0.2, convention="fairseq")[0]
    torch.testing.assert_close(found, loss_of("label_smoothing", epsilon=0.2 * CLASSES / (CLASSES - 1))[0])


def test_joeynmt_smoothing_against_a_table():
    found, log_p, target = loss_of("label_smoothing", epsilon=0.3, convention="joeynmt", padding_index=0)
    table = torch.full((6, CLASSES), 0.1, dtype=torch.float64)
    table[:, 0] = 0
    table[torch.arange(6), target] = 0.7
    expected = (torch.special.xlogy(table, table) - table * log_p).sum(-1)
    expected[target == 0] = 0
    torch.testing.assert_close(found, expected)


def test_unigram_smoothing_by_hand():
    found, log_p, target = loss_of("unigram_smoothing", epsilon=0.3, temperature=2.0)
    prior = (COUNTS + 1).double().sqrt()
    smoothed = 0.7 * F.one_hot(target, CLASSES) + 0.3 * prior / prior.sum()
    torch.testing.assert_close(found, -(smoothed * log_p).sum(-1))


@pytest.mark.parametrize(("convention", "share"), [("paper", 1), ("class_mean", CLASSES)])
def test_confidence_penalty_by_hand(convention, share):
    found, log_p, target = loss_of("confidence_penalty", strength=0.7, convention=convention)
    entropy = torch.distributions.Categorical(logits=log_p).entropy()
    torch.testing.assert_close(found, -log_p[torch.arange(6), target] - 0.7 / share * entropy)


def test_labo_by_hand():
    found, log_p, target = loss_of("labo", alpha=0.3, beta=4.0, prior="unigram")
    prior = (COUNTS + 1).double() / (COUNTS + 1).sum()
    label = (log_p / 4 + prior.log()).softmax(-1)
    inner = (-label * log_p + 4 * label * (label / prior).log()).sum(-1)
    torch.testing.assert_close(found, -0.7 * log_p[torch.arange(6), target] + 0.3 * inner)


# What is refused.


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UserError, match="nearest is 'labo'"):
        regularizers.create("lab")
    with pytest.raises(UserError, match="nearest is 'epsilon'"):
        regularizers.create("label_smoothing", epsilom=0.1)
    with pytest.raises(UserError, match="Cannot load the method 'no_such_module:Thing'"):
        regularizers.create("no_such_module:Thing")
    with pytest.raises(UserError, match=r"to be a labo\.regularizers\.Regularizer"):
        regularizers.create("math:pi")
    with pytest.raises(UserError, match="of its own"):
        regularizers.register(type(regularizers.create("none")))
    with pytest.raises(TypeError, match="to be a Regularizer, but got str"):
        LabelRegularizedLoss("labo")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("label_smoothing", {"epsilon": 1.2}, r"`epsilon` to be in \[0, 1\], but got 1.2"),
        ("label_smoothing", {"convention": "t5"}, "Unknown convention 't5'"),
        ("label_smoothing", {"convention": "joeynmt"}, "`padding_index`"),
        ("unigram_smoothing", {"temperature": 0}, "`temperature` to be above 0"),
        ("confidence_penalty", {"strength": -1}, r"`strength` to be a number in \[0, inf\), but got -1"),
        ("labo", {"alpha": math.nan}, "`alpha`"),
        ("labo", {"beta": 0}, "`beta` to be above 0"),
        ("labo", {"prior": "bigram"}, "Unknown prior 'bigram'"),
    ],
)
def test_options_out_of_range_are_named(name, options, told):
    with pytest.raises(ValueError, match=told):
        regularizers.create(name, **options)


def test_counts_must_be_counts_of_these_classes():
    made = regularizers.create("unigram_smoothing")
    with pytest.raises(ValueError, match="class_counts"):
        made.provide(class_counts=-COUNTS)
    made.provide(class_counts=COUNTS[:3])
    with pytest.raises(ValueError, match="5 classes"):
        LabelRegularizedLoss(made)(*batch())


# The page that tells how to add one.


@pytest.fixture
def page():
    """The names that the page's Python blocks define, run as written."""
    text = (Path(__file__).parents[1] / "docs" / "write-your-own.md").read_text()
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    try:
        exec("\n".join(blocks), names)
        yield names
    finally:
        registry._USER_REGISTRY.pop("top_smoothing", None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_page_works_as_written(page):
    assert "top_smoothing" in regularizers.available()
    assert page["logits"].grad.abs().sum() > 0
    for check in (test_a_masked_batch_equals_the_filtered_batch, test_its_options_make_it_again):
        check("top_smoothing", {"strength": 0.3})
    test_labels_are_what_the_gradient_pulls_towards("top_smoothing", {"strength": 0.3})


def test_every_member_has_its_line_in_the_docs():
    text = (Path(__file__).parents[1] / "docs" / "regularizers.md").read_text()
    assert all(f"| `{name}` |" in text for name in regularizers.available())


@pytest.mark.parametrize("name", regularizers.available())
def test_every_member_has_its_page_as_its_docstring_says(name):
    root = Path(__file__).parents[1]
    spec = importlib.util.spec_from_file_location("method_pages", root / "benchmarks" / "method_pages.py")
    assert spec
    assert spec.loader
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    picture = (root / "docs" / "methods" / "figures" / f"{name}.svg").exists()
    assert (root / "docs" / "methods" / f"{name}.md").read_text() == pages.page(name, picture)
    assert "When" in regularizers.document(name)


def _rows(logits: Tensor, target: Tensor, given: dict[str, Any]) -> Any:
    from labo.reduction import as_rows

    return dataclasses.replace(as_rows(logits, target, None, -100), given=given)


def test_a_name_may_fix_options():
    member = regularizers.create("labo[prior=unigram,beta=inf]")
    assert (member.options()["prior"], member.options()["beta"]) == ("unigram", float("inf"))
    assert regularizers.describe("labo[prior=unigram]").needs == ("class_counts",)
    assert regularizers.describe("labo[prior=unigram]").defaults["prior"] == "unigram"
    assert all(options["prior"] == "unigram" for options in regularizers.candidates("labo[prior=unigram]"))
    # Candidates that an option in brackets makes the same are one.
    assert len(regularizers.candidates("label_smoothing[epsilon=0.3]")) == 1
    for name, told in (
        ("labo[prior]", "NAME"),
        ("labo[prior=unigram", "NAME"),
        ("labo[alpha=1,alpha=2]", "NAME"),
        ("labo[gamma=1]", "labo option"),
        ("labo[alpha=2]", "argument `alpha` to be in"),
        ("labo[beta=wide]", "argument `beta`"),
        ("nothing[a=1]", "method"),
    ):
        with pytest.raises(UserError, match=told):
            regularizers.create(name)


def test_a_prior_that_is_a_parameter_stays_one():
    prior = torch.nn.Parameter(torch.full((4,), 0.25))
    for made in (LABOLoss(prior=prior), regularizers.create("labo", prior=prior)):
        assert list(made.parameters()) == [prior]
        loss = LabelRegularizedLoss(made) if isinstance(made, regularizers.Regularizer) else made
        loss(torch.randn(3, 4), torch.tensor([0, 1, 2])).backward()
        assert prior.grad is not None
        prior.grad = None
    assert list(LABOLoss(prior=torch.full((4,), 0.25)).parameters()) == []


def test_an_option_without_an_attribute_of_its_name_is_an_error_of_one_sentence():
    class Forgetful(regularizers.SoftLabelRegularizer):
        name = "forgetful"

        def __init__(self, *, strength: float = 0.1, top: int = 2) -> None:
            super().__init__(strength=strength)

        def labels(self, rows: Any) -> Tensor:
            return torch.full_like(rows.logits, 1 / rows.logits.shape[-1])

    with pytest.raises(UserError, match="Expected Forgetful to store its option `top` as an attribute of that name"):
        Forgetful().options()
