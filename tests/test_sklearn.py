"""LABOClassifier as scikit-learn's tools use it."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import base
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris, make_blobs
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks
from torch import nn

import labo
from labo import regularizers
from labo.integrations.sklearn import LABOClassifier

SMALL: dict[str, Any] = {"hidden_layer_sizes": (16,), "learning_rate": 1e-2, "random_state": 0}
# One of each kind: what is stored, dtypes, weights, classes, order and subsets.
FEW = (
    "check_no_attributes_set_in_init",
    "check_estimators_dtypes",
    "check_sample_weight_equivalence_on_dense_data",
    "check_all_zero_sample_weights_error",
    "check_classifiers_one_label_sample_weights",
    "check_classifiers_classes",
    "check_estimators_pickle",
    "check_methods_subset_invariance",
    "check_fit_idempotent",
    "check_n_features_in",
)


def clone(classifier: Any) -> Any:
    return base.clone(classifier)


def iris(**options: Any) -> Any:
    return load_iris(return_X_y=True, **options)


def checks_of(classifier: LABOClassifier) -> list[Any]:
    pairs: Any = estimator_checks.estimator_checks_generator(classifier)
    return [check for _, check in pairs]


def name_of(check: Any) -> str:
    return getattr(check, "func", check).__name__


FAST = [check for check in checks_of(LABOClassifier(**SMALL, epochs=2)) if name_of(check) in FEW]


def test_the_few_checks_exist():
    assert {name_of(check) for check in FAST} == set(FEW)


@pytest.mark.filterwarnings("default")  # theirs
@pytest.mark.parametrize("check", FAST, ids=name_of)
def test_checks_of_scikit_learn(check):
    check(LABOClassifier(**SMALL, epochs=2))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("options", [{}, {"prior": "memory"}, {"method": "elr"}], ids=str)
def test_all_checks_of_scikit_learn(options):
    results = estimator_checks.check_estimator(LABOClassifier(**SMALL, epochs=30, **options), on_skip=None)
    assert {result["check_name"] for result in results if result["status"] != "passed"} <= {"check_array_api_input"}


@pytest.fixture(scope="module")
def noisy() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(features, right classes, classes of which a fifth is wrong, the rows of these)."""
    centers = [[-2.0, 0.0, 1.0, 0.0], [2.0, 0.0, 0.0, 1.0], [0.0, 3.0, 1.0, 1.0]]
    blobs: Any = make_blobs(300, 4, centers=centers, cluster_std=0.7, random_state=0)
    features, right = blobs
    draw = np.random.default_rng(0)
    wrong = draw.choice(300, 60, replace=False)
    given = right.copy()
    given[wrong] = (right[wrong] + draw.integers(1, 3, 60)) % 3
    return features.astype(np.float32), right, given, wrong


@pytest.fixture(scope="module")
def remembered(noisy) -> LABOClassifier:
    features, _, given, _ = noisy
    names = np.array(["no", "maybe", "yes"])
    wide = {**SMALL, "hidden_layer_sizes": (128,)}  # learns wrong labels by heart without a memory
    return LABOClassifier(prior="memory", epochs=60, **wide).fit(features, names[given])


def test_a_memory_finds_the_wrong_labels(noisy, remembered):
    _, right, given, wrong = noisy
    issues, names = remembered.label_issues_, np.array(["no", "maybe", "yes"])
    assert issues.dtype.names == ("index", "given", "suggested", "score")
    assert np.isin(issues["index"], wrong).mean() > 0.9
    assert np.isin(wrong, issues["index"]).mean() > 0.8
    assert (issues["given"] == names[given[issues["index"]]]).all()
    found = np.isin(issues["index"], wrong)
    assert (issues["suggested"] == names[right[issues["index"]]])[found].mean() > 0.9
    assert (np.diff(issues["score"]) <= 0).all()
    assert set(np.flatnonzero(remembered.label_scores_ > 0)) == set(issues["index"])
    assert list(pd.DataFrame(issues)["index"]) == list(issues["index"])


def test_a_memory_learns_past_wrong_labels(noisy, remembered):
    features, right, given, _ = noisy
    plain = clone(remembered).set_params(method="none", prior=None).fit(features, given)
    assert (plain.predict(features) == right).mean() < 0.95
    assert (remembered.predict(features) == np.array(["no", "maybe", "yes"])[right]).mean() > 0.97


def test_scores_are_the_log_ratios_of_the_memory(noisy):
    features, _, given, _ = noisy
    classifier: Any = LABOClassifier(prior="memory", epochs=2, batch_size=300, **SMALL, options={"decay": 0.5})
    held = []
    original = classifier._rank

    def rank(regularizer, *rest):
        held.append(regularizer.prediction_memory.all_distributions(300, 3).double().numpy())
        original(regularizer, *rest)

    classifier._rank = rank
    classifier.fit(features, given)
    memory = held[0]
    others = memory.copy()
    others[np.arange(300), given] = 0
    expected = np.log(others.max(1)) - np.log(memory[np.arange(300), given])
    np.testing.assert_allclose(classifier.label_scores_, expected, atol=1e-6)


def test_without_a_memory_there_are_no_issues(noisy, remembered):
    features, _, given, _ = noisy
    classifier = clone(remembered).set_params(prior=None, epochs=1).fit(features, given)
    with pytest.raises(AttributeError, match=r'LABOClassifier\(prior="memory"\)'):
        _ = classifier.label_issues_
    refitted = clone(remembered).set_params(epochs=1).fit(features, given)
    assert hasattr(refitted, "label_issues_")
    assert not hasattr(refitted.set_params(prior=None).fit(features, given), "label_issues_")


@pytest.mark.parametrize(
    "names",
    [["a", "b", "c"], [-3, 0, 7], np.array(["x", "yy", "z"], dtype=object)],
    ids=["text", "numbers", "objects"],
)
def test_classes_of_any_type(names):
    features, codes = iris()
    names = np.asarray(names)
    classifier = LABOClassifier(epochs=20, **SMALL).fit(features, names[codes])
    assert classifier.classes_.dtype == names.dtype
    assert list(classifier.classes_) == sorted(names)
    assert (classifier.predict(features) == names[codes]).mean() > 0.9


def test_booleans_and_categories():
    features, codes = iris(as_frame=True)
    truth: Any = LABOClassifier(epochs=5, **SMALL).fit(features, codes == 0)
    assert truth.predict(features).dtype == bool
    assert list(truth.feature_names_in_) == list(features.columns)
    kinds = pd.Series(np.array(["u", "v", "w"])[codes], dtype="category")
    assert set(LABOClassifier(epochs=5, **SMALL).fit(features, kinds).predict(features)) <= {"u", "v", "w"}


def test_weights_count_examples_and_zero_leaves_them_out(noisy):
    features, _, given, _ = noisy
    features, given = features[:50].astype(np.float64), given[:50]
    weights = np.arange(50) % 3
    whole = LABOClassifier(epochs=5, batch_size=50, **SMALL)
    weighted = clone(whole).fit(features, given, sample_weight=weights)
    repeated = clone(whole).fit(features.repeat(weights, 0), given.repeat(weights))
    np.testing.assert_allclose(weighted.predict_proba(features), repeated.predict_proba(features), rtol=1e-6)
    equal = clone(whole).fit(features, given)
    assert np.abs(equal.predict_proba(features) - weighted.predict_proba(features)).max() > 1e-3


def test_examples_of_weight_zero_have_no_issue(noisy):
    features, _, given, wrong = noisy
    weights = np.ones(300)
    weights[wrong[:30]] = 0
    classifier = LABOClassifier(prior="memory", epochs=15, **SMALL).fit(features, given, sample_weight=weights)
    assert not np.isin(classifier.label_issues_["index"], wrong[:30]).any()
    assert np.isin(classifier.label_issues_["index"], wrong[30:]).sum() > 20
    assert np.isneginf(classifier.label_scores_[wrong[:30]]).all()


def test_class_weights_multiply_sample_weights(noisy):
    features, _, given, _ = noisy
    whole = LABOClassifier(epochs=3, batch_size=300, **SMALL)
    by_class = clone(whole).set_params(class_weight={0: 3.0, 1: 1.0, 2: 0.5}).fit(features, given)
    by_sample = clone(whole).fit(features, given, sample_weight=np.array([3.0, 1.0, 0.5])[given])
    np.testing.assert_allclose(by_class.predict_proba(features), by_sample.predict_proba(features), rtol=1e-5)


def test_grid_search_in_a_pipeline():
    features, codes = iris()
    pipeline = make_pipeline(FunctionTransformer(), LABOClassifier(epochs=8, **SMALL))
    grid = {"laboclassifier__alpha": [0.1, 0.5], "laboclassifier__prior": [None, "memory"]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(features, np.array(["a", "b", "c"])[codes])
    assert len(search.cv_results_["params"]) == 4
    assert search.best_score_ > 0.8
    assert cross_val_score(search.best_estimator_, features, codes, cv=2).min() > 0.7


def test_temperature_scaling_repairs_confidence():
    features, codes = iris()
    smoothed = LABOClassifier(alpha=0.6, beta=8.0, epochs=40, **SMALL)
    calibrated = CalibratedClassifierCV(clone(smoothed), method="temperature", cv=3).fit(features, codes)
    rows = np.arange(len(codes))
    nll = [
        -np.log(each.predict_proba(features)[rows, codes]).mean()
        for each in (smoothed.fit(features, codes), calibrated)
    ]
    assert nll[1] < nll[0] - 0.1


def test_the_same_seed_gives_the_same_network_and_leaves_torch_alone(noisy):
    features, _, given, _ = noisy
    state = torch.get_rng_state()
    first, second, other = (
        LABOClassifier(epochs=2, **{**SMALL, "random_state": seed}).fit(features, given) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(first.predict_proba(features), second.predict_proba(features))
    assert not np.array_equal(first.predict_proba(features), other.predict_proba(features))


def test_a_pickled_classifier_predicts_the_same(noisy, remembered):
    copied = pickle.loads(pickle.dumps(remembered))
    assert np.array_equal(copied.predict_proba(noisy[0]), remembered.predict_proba(noisy[0]))
    assert np.array_equal(copied.label_issues_, remembered.label_issues_)


def test_the_objective_is_the_weighted_mean_of_the_losses(noisy):
    features, _, given, _ = noisy
    network = nn.Linear(4, 3)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    weights = np.linspace(0.5, 2, 300).astype(np.float32)
    classifier = LABOClassifier(
        alpha=0.3, beta=1.5, network=lambda features, classes: network, epochs=1, batch_size=300, weight_decay=0.0
    )
    classifier.fit(features, given, sample_weight=weights)
    share = torch.tensor(weights / weights.sum())
    x = torch.tensor(features)
    mean = (share[:, None] * x).sum(0)
    scaled = (x - mean) / (share[:, None] * (x - mean).square()).sum(0).sqrt()
    again = nn.Linear(4, 3)
    again.load_state_dict(start)
    optimizer = torch.optim.AdamW(again.parameters(), lr=2e-3, weight_decay=0.0)
    rows = labo.labo_cross_entropy(again(scaled), torch.tensor(given), alpha=0.3, beta=1.5, reduction="none")
    (rows * share).sum().backward()
    optimizer.step()
    for name, value in again.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, atol=1e-5, rtol=0)


POSSIBLE = [
    name
    for name in regularizers.available()
    if not {"teacher", "decision", "kept"} & set(regularizers.create(name).needs)
]


@pytest.mark.parametrize("method", [*POSSIBLE, "labo[prior=unigram]"])
def test_every_member_trains(noisy, method):
    features, _, given, _ = noisy
    classifier = LABOClassifier(method=method, epochs=2, **SMALL).fit(features, given)
    assert np.isfinite(classifier.predict_proba(features)).all()
    assert hasattr(classifier, "label_issues_") == (method in ("elr",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lab"}, "Unknown method 'lab'; the nearest is 'labo'"),
        ({"method": "label_smoothing", "alpha": 0.1}, "Unknown label_smoothing option 'alpha'"),
        ({"method": "labo_auto"}, "needs decision, which LABOClassifier cannot provide"),
        ({"alpha": 2.0}, "alpha"),
        ({"epochs": 0}, "Expected argument `epochs` to be a whole number of at least 1, but got 0"),
        ({"learning_rate": -1}, r"`learning_rate` to be a number in \(0, inf\), but got -1"),
        ({"hidden_layer_sizes": (0,)}, "`hidden_layer_sizes` to be a whole number of at least 1"),
        ({"prior": [0.5, 0.5]}, "prior"),
        ({"learning_rate": 1e30, "epochs": 3}, r"Training diverged; use a learning_rate below 1e\+30"),
    ],
)
def test_bad_settings_are_told(noisy, options, message):
    features, _, given, _ = noisy
    with pytest.raises(ValueError, match=message):
        LABOClassifier(**{**SMALL, **options}).fit(features, given)
