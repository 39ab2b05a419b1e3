"""The settings of training, with their types, ranges and defaults; the flat KEY=VALUE form is for the CLI and JSON."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from labo import numeric
from labo.errors import UserError, unknown

SCHEDULES = ("constant", "linear", "cosine", "steps", "inverse_sqrt")


# Above these nothing trains, or float32 overflows.
_MAX_COUNT, _MAX_EPOCHS, _MAX_RATE, _MAX_DECAY = 2**31 - 1, 1_000_000, 1e30, 1_000_000


def _whole(default: Any = MISSING, **bounds: int) -> Any:
    """A whole number within the bounds of `numeric.setting`."""
    return field(default=default, metadata={"range": {"whole": True, "maximum": _MAX_COUNT, **bounds}})


def _real(default: Any = MISSING, **bounds: float) -> Any:
    """A finite number within the bounds of `numeric.setting`."""
    return field(default=default, metadata={"range": bounds})


def _fraction(default: float) -> Any:
    """A number in [0, 1)."""
    return _real(default, minimum=0, below=1)


def _choice(default: str, *choices: str) -> Any:
    return field(default=default, metadata={"choices": choices})


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a network is trained: exactly one of `epochs` and `steps`, and of `batch_size` and `tokens`.

    Raises:
        UserError: a value is out of range, or two of them contradict each other.

    Example:
        >>> TrainingSettings(epochs=2, batch_size=64, learning_rate=1e-3).schedule
        'constant'
    """

    epochs: float | None = _real(None, above=0, maximum=_MAX_EPOCHS)
    """Passes over the training split; a fraction ends within an epoch."""
    steps: int | None = _whole(None, above=0)
    """Optimizer steps, in place of epochs."""
    batch_size: int | None = _whole(None, above=0)
    """Examples in a step, over all processes and accumulated parts."""
    tokens: int | None = _whole(None, above=0)
    """Tokens in a step, padding included: (pairs) x (longest sentence) is at most this. In place of `batch_size`."""
    accumulation: int = _whole(1, above=0)
    """Parts of a batch in each process, whose gradients are accumulated."""
    optimizer: str = _choice("adamw", "adamw", "sgd")
    """AdamW, or SGD with Nesterov momentum."""
    learning_rate: float = _real(above=0, maximum=_MAX_RATE)
    """The learning rate after warm-up."""
    weight_decay: float = _real(0.0, minimum=0, maximum=_MAX_DECAY)
    """Weight decay of all weights but biases and normalization layers."""
    momentum: float = _fraction(0.9)
    """Momentum of SGD."""
    adam_beta1: float = _fraction(0.9)
    """Decay of AdamW's mean of gradients."""
    adam_beta2: float = _fraction(0.999)
    """Decay of AdamW's mean of squared gradients."""
    schedule: str = _choice("constant", *SCHEDULES)
    """The learning rate after warm-up: constant, linear or cosine decay to 0, divided by ten at half and at three
    quarters of the steps ("steps"), or inverse square root of the steps."""
    warmup: float = _fraction(0.0)
    """The fraction of the steps in which the learning rate rises linearly."""
    precision: str = _choice("float32", "float32", "bfloat16")
    """Of the network's forward and backward pass; weights, optimizer and loss stay float32."""
    ema: float = _fraction(0.0)
    """Decay of an exponential moving average of the weights, which is evaluated and saved; 0 for none."""
    average_epochs: int = _whole(0, minimum=0)
    """The trained weights are the mean of those after the last so many epochs; 0 for those of the last step."""
    patience: int = _whole(0, minimum=0)
    """Stop after so many epochs without a better one; 0 never stops early. Needs the best epoch to be kept."""
    start_after: int = _whole(0, minimum=0)
    """Steps that are trained with `start_with` before the method begins."""
    start_with: str = _choice("none", "none", "label_smoothing")
    """The method of the first `start_after` steps."""

    def __post_init__(self) -> None:
        check({name: value for name, value in vars(self).items() if value is not None})
        for one, other in (("epochs", "steps"), ("batch_size", "tokens")):
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                raise UserError(f"Expected exactly one of the settings `{one}` and `{other}`.")

    @classmethod
    def from_mapping(cls, flat: Mapping[str, Any]) -> TrainingSettings:
        """The training settings among flat KEY=VALUE settings; those of the network and the task are left out.

        Raises:
            UserError: as the constructor raises it; the learning rate is missing.
        """
        if "learning_rate" not in flat:
            raise UserError("Expected a setting `learning_rate`.")
        known: dict[str, Any] = {name: flat[name] for name in _FIELDS if flat.get(name) is not None}
        check(known)
        for name in known:
            if _FIELDS[name].metadata.get("range", {}).get("whole"):
                known[name] = int(known[name])  # 64.0 in a config file
        return cls(**known)

    def to_mapping(self, named: Collection[str] = ()) -> dict[str, Any]:
        """The settings that differ from their defaults, and those `named`, as flat KEY=VALUE settings; JSON-able."""
        own = vars(self)
        return {name: value for name, value in own.items() if name in named or value != _FIELDS[name].default}


_FIELDS: dict[str, Field[Any]] = {each.name: each for each in fields(TrainingSettings)}
CHOICES: dict[str, tuple[str, ...]] = {
    name: each.metadata["choices"] for name, each in _FIELDS.items() if "choices" in each.metadata
}
"""The settings that take one of a few strings."""
DEFAULTS: dict[str, Any] = {name: each.default for name, each in _FIELDS.items() if each.default not in (None, MISSING)}
"""The settings that have a default."""


def check(flat: Mapping[str, Any]) -> None:
    """Refuse training settings out of range, wherever they are among flat settings.

    Raises:
        UserError: a value is out of range.

    Example:
        >>> check({"momentum": 1.0, "hidden": 256})
        Traceback (most recent call last):
        labo.errors.UserError: Expected setting `momentum` to be in [0, 1), but got 1.0.
    """
    for name, each in _FIELDS.items():
        if name in flat:
            _check_value(name, flat[name], each.metadata)
    if flat.get("start_with", "none") != "none" and not flat.get("start_after"):
        raise UserError("Setting `start_with` requires `start_after`, the number of steps before the method's loss.")


def _check_value(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    if choices := limits.get("choices"):
        if value not in choices:
            raise unknown(name, value, choices)
    else:
        numeric.setting(name, value, **limits["range"])
