"""A classifier for scikit-learn: a network for tables, trained with a regularizer.

    LABOClassifier(prior="memory").fit(X, y)

learns each example's label during training; `label_issues_` then lists the rows whose label looks wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor, nn

from labo import checks, networks, ranking, regularizers
from labo.errors import UserError
from labo.indexed import IndexedDataset
from labo.integrations.batch_inputs import BatchInputs
from labo.regularized_loss import LabelRegularizedLoss
from labo.regularizers.base import Regularizer
from labo.tasks.base import Examples

__all__ = ["LABOClassifier"]

_DTYPES = [np.float64, np.float32]
# Rows that are predicted at a time.
_CHUNK_ROWS = 65_536


class LABOClassifier(ClassifierMixin, BaseEstimator):
    """A multilayer perceptron that is trained with LABO, or with another regularizer of the family.

    Features are standardized by the (weighted) mean and deviation of the training examples, and the network computes in
    their dtype; float32 takes half the memory. Training minimizes the mean of the row losses, weighted by
    `sample_weight`, with AdamW.

    Args:
        method: a member of the family, as in `labo.regularizers.create`; "none" is plain cross-entropy.
        prior: "memory" learns each example's label from a running average of its predictions; "unigram" is the class
            frequencies; an array (C,) of probabilities has the order of `classes_`; None is the default of the method.
        alpha, beta: strength and temperature of LABO; None for the defaults.
        options: further options of the method, such as {"sharpness": 1.5, "epsilon": 0.3} with prior="memory".
        hidden_layer_sizes: units of each hidden layer, with ReLU.
        network: replaces the perceptron: a function (features, classes) -> nn.Module that maps (N, features) to logits
            (N, classes).
        epochs: passes over the training examples.
        batch_size: examples in an optimizer step.
        learning_rate, weight_decay: of AdamW.
        class_weight: None, "balanced" or a mapping from classes to weights, which multiply the sample weights.
        device: where the network is trained; it predicts on the CPU.
        random_state: seed of initialization, order and dropout.

    Attributes:
        classes_: (C,) the classes, of the type of `y`.
        network_: the trained network; standardized, it takes features as they are.
        n_features_in_, feature_names_in_: as in scikit-learn.
        label_scores_: (N,) after training with a memory: above 0 where it prefers another class than `y`; -inf for
            examples of weight 0.
        label_issues_: the rows with a score above 0, the most suspicious first: a structured array of "index" (the row
            of X), "given" and "suggested" (classes) and "score".

    Raises:
        ValueError, TypeError: an argument is out of range or unknown, `y` has fewer than two classes, the method needs
            something that a table has not, or training diverges.

    Source: docs/memory.md for the memory; docs/suspicious-labels.md for the scores.

    Example:
        >>> X = np.repeat([[0.0], [1.0]], 20, axis=0)
        >>> y = np.repeat(["no", "yes"], 20)
        >>> y[0] = "yes"
        >>> classifier = LABOClassifier(prior="memory", hidden_layer_sizes=(8,), random_state=0).fit(X, y)
        >>> classifier.predict([[0.0]])
        array(['no'], dtype='<U3')
        >>> classifier.label_issues_[["index", "given", "suggested"]].tolist()
        [(0, 'yes', 'no')]
    """

    classes_: np.ndarray
    network_: nn.Module

    def __init__(
        self,
        *,
        method: str = "labo",
        prior: str | ArrayLike | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        options: Mapping[str, Any] | None = None,
        hidden_layer_sizes: int | Sequence[int] = (256, 256),
        network: Callable[[int, int], nn.Module] | None = None,
        epochs: int = 60,
        batch_size: int = 64,
        learning_rate: float = 2e-3,
        weight_decay: float = 1e-2,
        class_weight: str | Mapping[Any, float] | None = None,
        device: str = "cpu",
        random_state: Any = None,
    ) -> None:
        self.method = method
        self.prior = prior
        self.alpha = alpha
        self.beta = beta
        self.options = options
        self.hidden_layer_sizes = hidden_layer_sizes
        self.network = network
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.class_weight = class_weight
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> LABOClassifier:  # noqa: N803 (sklearn's)
        """Train on features X (N, D) and classes y (N,), with weights (N,) of at least 0.

        An example of weight 0 counts as left out; one of weight 2 counts twice.
        """
        validated: Any = validate_data(self, X, y, dtype=_DTYPES)
        x, y = validated
        check_classification_targets(y)
        self._check_settings()
        weights = _check_sample_weight(sample_weight, x, dtype=x.dtype, ensure_non_negative=True)
        if self.class_weight is not None:
            weights = weights * compute_sample_weight(self.class_weight, y).astype(x.dtype)
        rows = np.flatnonzero(weights)
        if not len(rows):
            raise ValueError("Expected sample weights of which one is not zero.")
        self.classes_, codes = np.unique(y[rows], return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"Expected at least 2 classes among examples of weight above 0, but got 1 class: {self.classes_[0]}."
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        device = torch.device(self.device)
        with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
            torch.manual_seed(seed)
            features = torch.tensor(x[rows])
            row_weights = torch.tensor(weights[rows])
            network = self._make_network(features, row_weights).to(device)
            examples = Examples(features.to(device), torch.from_numpy(codes).to(device))
            loss = LabelRegularizedLoss(self._make_regularizer(examples), reduction="none")
            self._train(network, loss, examples, row_weights.to(device), seed)
        self.network_ = network.cpu().eval()
        self._rank(loss.regularizer, rows, codes, len(x))
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803 (sklearn's)
        """Probabilities (N, C) of features X (N, D), in the order of `classes_`.

        A regularized network is under-confident; `CalibratedClassifierCV(…, method="temperature")` repairs that.
        """
        check_is_fitted(self)
        x = validate_data(self, X, dtype=_DTYPES, reset=False)
        dtype = next(self.network_.buffers()).dtype
        chunks = [torch.tensor(x[at : at + _CHUNK_ROWS], dtype=dtype) for at in range(0, len(x), _CHUNK_ROWS)]
        with torch.no_grad():
            logits = torch.cat([networks.logits_of(self.network_(chunk)) for chunk in chunks])
        return logits.softmax(-1).numpy()

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803 (sklearn's)
        """The likeliest class (N,) of features X (N, D)."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(-1)]

    @property
    def label_issues_(self) -> np.ndarray:
        """The training rows whose memory prefers another class, the most suspicious first."""
        if "_label_issues" not in vars(self):
            raise AttributeError('Expected a memory for `label_issues_`: LABOClassifier(prior="memory").fit(X, y).')
        return self._label_issues

    def _check_settings(self) -> None:
        checks.integer("epochs", self.epochs)
        checks.integer("batch_size", self.batch_size)
        checks.number("learning_rate", self.learning_rate, "(0, inf)")
        checks.number("weight_decay", self.weight_decay, "[0, inf)")
        for size in self._hidden_sizes:
            checks.integer("hidden_layer_sizes", size)

    @property
    def _hidden_sizes(self) -> list[int]:
        return np.atleast_1d(self.hidden_layer_sizes).tolist()  # one number is one layer, as in scikit-learn

    def _make_network(self, features: Tensor, weights: Tensor) -> nn.Module:
        classes, width = len(self.classes_), features.shape[1]
        if self.network is not None:
            layers = [self.network(width, classes)]
        else:
            layers = []
            for size in self._hidden_sizes:
                layers += [nn.Linear(width, size), nn.ReLU()]
                width = size
            layers.append(nn.Linear(width, classes))
        return _Standardized(features, weights, nn.Sequential(*layers)).to(features.dtype)

    def _make_regularizer(self, examples: Examples) -> Regularizer:
        options = {"alpha": self.alpha, "beta": self.beta, "prior": self.prior}
        options = {name: value for name, value in options.items() if value is not None}
        if "prior" in options and not isinstance(self.prior, str):
            options["prior"] = torch.as_tensor(np.asarray(self.prior), dtype=examples.features.dtype)
        regularizer = regularizers.create(self.method, **options, **(self.options or {}))
        for need in ("teacher", "decision", "posterior", "kept", "dense_logits"):
            if need in regularizer.needs:
                raise UserError(f"Method '{self.method}' needs {need}, which LABOClassifier cannot provide.")
        if "class_counts" in regularizer.missing:
            regularizer.provide(class_counts=examples.class_counts(len(self.classes_)))
        return regularizer.to(examples.features.device)

    def _train(
        self, network: nn.Module, loss: LabelRegularizedLoss, examples: Examples, weights: Tensor, seed: int
    ) -> None:
        regularizer = loss.regularizer
        inputs = BatchInputs(regularizer, examples, model=network, epochs=self.epochs, seed=seed)
        groups: list[dict[str, Any]] = [{"params": network.parameters(), "weight_decay": self.weight_decay}]
        if learnt := regularizer.learnt():
            groups.append({"params": learnt, "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate)
        if "optimizer" in regularizer.missing:
            regularizer.provide(optimizer=optimizer)
        generator, step = torch.Generator().manual_seed(seed), 0
        steps = self.epochs * -(-len(examples) // self.batch_size)
        objective = weights.new_zeros(())
        for epoch in range(self.epochs):
            for indices in torch.randperm(len(examples), generator=generator).split(self.batch_size):
                batch = examples.__getitems__(indices.tolist())
                given = inputs.of(indices, batch, epoch=epoch, step=step, steps=steps, partners=_partners)
                row_weights = weights[indices]
                losses = loss(network(batch["features"]), batch["labels"], **given)
                objective = (losses * row_weights).sum() / row_weights.sum()
                optimizer.zero_grad()
                objective.backward()
                optimizer.step()
                step += 1
        if not bool(objective.isfinite()):
            raise UserError(f"Training diverged; use a learning_rate below {self.learning_rate:g}.")

    def _rank(self, regularizer: Regularizer, rows: np.ndarray, codes: np.ndarray, size: int) -> None:
        """Set the scores of the labels and the issues, if the regularizer has a memory."""
        for name in ("label_scores_", "_label_issues"):
            vars(self).pop(name, None)
        memory = regularizer.prediction_memory
        if memory is None:
            return
        distributions = memory.all_distributions(len(rows), len(self.classes_)).cpu()
        ranked = ranking.rank(ranking.memory_logits(distributions), torch.from_numpy(codes), beta=1.0)
        self.label_scores_ = np.full(size, -np.inf)
        self.label_scores_[rows] = ranked.scores.numpy()
        order = ranked.order[ranked.scores[ranked.order] > 0].numpy()
        kind = self.classes_.dtype
        fields = [("index", np.int64), ("given", kind), ("suggested", kind), ("score", np.float64)]
        self._label_issues = np.empty(len(order), dtype=fields)
        self._label_issues["index"] = rows[order]
        self._label_issues["given"] = self.classes_[codes[order]]
        self._label_issues["suggested"] = self.classes_[ranked.other.numpy()[order]]
        self._label_issues["score"] = ranked.scores.numpy()[order]


class _Standardized(nn.Module):
    """A network whose features are standardized by the weighted mean and deviation of examples (N, D)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: Tensor, weights: Tensor, network: nn.Module) -> None:
        super().__init__()
        scaler = StandardScaler().fit(features.numpy(), sample_weight=weights.numpy())
        self.register_buffer("mean", torch.from_numpy(scaler.mean_))
        self.register_buffer("deviation", torch.from_numpy(scaler.scale_))
        self.network = network

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, D)."""
        return networks.logits_of(self.network((features - self.mean) / self.deviation))


def _partners(dataset: IndexedDataset, indices: list[int]) -> dict[str, Any]:
    """The network's inputs for other examples."""
    return dataset.inputs(indices, lambda batch: batch)
