"""Which members there are, and how one is made from its name and options."""

from __future__ import annotations

import csv
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labo.errors import UserError, one_line, unknown

if TYPE_CHECKING:
    from labo.regularizers.base import Regularizer

# name -> "module:class"; a member is added by its file and its line here.
_REGISTRY: dict[str, str] = {
    "none": "labo.regularizers.none:NoRegularizer",
    "label_smoothing": "labo.regularizers.label_smoothing:LabelSmoothing",
    "unigram_smoothing": "labo.regularizers.unigram_smoothing:UnigramSmoothing",
    "confidence_penalty": "labo.regularizers.confidence_penalty:ConfidencePenalty",
    "generalized_entropy": "labo.regularizers.generalized_entropy:GeneralizedEntropy",
    "distillation": "labo.regularizers.distillation:Distillation",
    "tf_kd_self": "labo.regularizers.distillation:TeacherFreeDistillation",
    "tf_kd_reg": "labo.regularizers.tf_kd_reg:TeacherFreeRegularization",
    "cs_kd": "labo.regularizers.cs_kd:ClassWiseDistillation",
    "online_smoothing": "labo.regularizers.online_smoothing:OnlineSmoothing",
    "ps_kd": "labo.regularizers.ps_kd:ProgressiveDistillation",
    "zipf_smoothing": "labo.regularizers.zipf_smoothing:ZipfSmoothing",
    "dlb": "labo.regularizers.dlb:LastMiniBatch",
    "ls_plus": "labo.regularizers.ls_plus:LabelSmoothingPlusPlus",
    "maxsup": "labo.regularizers.maxsup:MaxSup",
    "beta_smoothing": "labo.regularizers.beta_smoothing:BetaSmoothing",
    "self_adaptive_smoothing": "labo.regularizers.self_adaptive_smoothing:SelfAdaptiveSmoothing",
    "margin_smoothing": "labo.regularizers.margin_smoothing:MarginSmoothing",
    "acls": "labo.regularizers.acls:ACLS",
    "masked_smoothing": "labo.regularizers.masked_smoothing:MaskedSmoothing",
    "focal": "labo.regularizers.focal:Focal",
    "poly1": "labo.regularizers.focal:Poly1",
    "bootstrapping": "labo.regularizers.bootstrapping:Bootstrapping",
    "elr": "labo.regularizers.elr:EarlyLearningRegularization",
    "gce": "labo.regularizers.gce:GeneralizedCrossEntropy",
    "sce": "labo.regularizers.sce:SymmetricCrossEntropy",
    "labo": "labo.regularizers.labo:LABO",
    "labo_auto": "labo.regularizers.labo_auto:LABOAuto",
}
_USER_REGISTRY: dict[str, type[Regularizer]] = {}


@dataclass(frozen=True)
class Description:
    """What `labo methods` tells of a member; `needs` is what its defaults need from training."""

    name: str
    summary: str
    paper: str
    year: int | None
    needs: tuple[str, ...]
    defaults: dict[str, Any]


def available() -> tuple[str, ...]:
    """The names of all members, registered ones included.

    Example:
        >>> "labo" in available()
        True
    """
    return (*_REGISTRY, *_USER_REGISTRY)


def register(member: type[Regularizer]) -> type[Regularizer]:
    """Class decorator that adds a member of your own under its `name`.

    Raises:
        ValueError: the name is taken or empty.
    """
    if not member.name or member.name in _REGISTRY:
        raise UserError(f"Expected a regularizer with a name of its own, but got {member.name!r}.")
    _USER_REGISTRY[member.name] = member
    return member


def create(name: str, **options: Any) -> Regularizer:
    """The member `name` with its options.

    `name` may also be "module:Class" of a `Regularizer` of your own; and any name may have options of its own in
    brackets, "labo[prior=unigram]", which are its defaults then, so that a comparison can have both.

    Raises:
        ValueError: unknown name or option (the message suggests the nearest), or a value out of range.

    Example:
        >>> create("label_smoothing", epsilon=0.2)
        LabelSmoothing(epsilon=0.2, convention='torch', padding_index=None)
        >>> create("label_smoothing[epsilon=0.3]").strength
        0.3
    """
    member, own = _variant(name)
    known = member.option_names()
    options = {**own, **options}
    for option in options:
        if option not in known:
            if not known:
                raise UserError(f"Method '{name}' has no options, but got '{option}'.")
            raise unknown(f"{name} option", option, known)
    try:
        return member(**options)
    except (TypeError, ValueError) as error:
        if not own:
            raise
        raise UserError(f"Method '{name}': {error}") from error


def candidates(name: str, given: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], ...]:
    """The option settings that `labo compare` tries for a member, the first ones first.

    They may depend on options that are `given`: with prior="memory" LABO has others.
    """
    member, own = _variant(name)
    found: list[dict[str, Any]] = []
    for options in member.candidates_with({**own, **(given or {})}):
        if (candidate := {**options, **own}) not in found:
            found.append(candidate)
    return tuple(found)


def is_tuned(name: str) -> bool:
    """Whether `labo compare` chooses a member's settings; False for one that decides by itself."""
    return _variant(name)[0].tuned


def describe(name: str, given: Mapping[str, Any] | None = None) -> Description:
    """Summary, source, needs and default options of a member; which options it has may depend on those `given`."""
    member, own = _variant(name)
    defaults = {**member.defaults({**own, **(given or {})}), **own}
    return Description(name, member.summary, member.paper, member.year, create(name).needs, defaults)


def document(name: str) -> str:
    """What a member says of itself: summary, formula, options, needs, when to use it, source."""
    member, _ = _variant(name)
    return f"{name}: {member.summary}\n\n{inspect.getdoc(member)}"


def costs() -> dict[str, dict[str, dict[str, str]]]:
    """What each member cost where it was measured: method, then setting, then "compute" (a ratio) and "state_bytes"."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    with open(Path(__file__).with_name("costs.csv"), newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            found.setdefault(line["method"], {})[line["setting"]] = line
    return found


def _variant(name: str) -> tuple[type[Regularizer], dict[str, Any]]:
    """(the member, the options in brackets after its name)."""
    base, bracket, text = name.partition("[")
    if not bracket:
        return _member(name), {}
    own: dict[str, Any] = {}
    for part in text.removesuffix("]").split(","):
        option, equals, value = part.partition("=")
        if not name.endswith("]") or not equals or not option.strip() or option.strip() in own:
            raise UserError(f"Expected method '{name}' to be NAME[OPTION=VALUE,…].")
        own[option.strip()] = _value(value.strip())
    member = _member(base)
    for option in own:
        if option not in member.option_names():
            raise unknown(f"{base} option", option, member.option_names())
    return member, own


def _value(text: str) -> Any:
    """A number, a truth value or a text."""
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _member(name: str) -> type[Regularizer]:
    if name in _USER_REGISTRY:
        return _USER_REGISTRY[name]
    if name in _REGISTRY:
        return _load(_REGISTRY[name])
    if ":" in name:
        return _own(name)
    raise unknown("method", name, available())


def _load(home: str) -> Any:
    module, _, attribute = home.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _own(name: str) -> type[Regularizer]:
    from labo.regularizers.base import Regularizer

    try:
        member = _load(name)
    except Exception as error:  # a module of one's own may raise anything
        raise UserError(
            f"Cannot load the method '{name}': {one_line(error)} (Python looks in the folder it starts in)."
        ) from error
    if not (isinstance(member, type) and issubclass(member, Regularizer)):
        raise UserError(f"Expected '{name}' to be a labo.regularizers.Regularizer, but it is not.")
    for option in list(inspect.signature(member.__init__).parameters.values())[1:]:
        if option.kind in (option.VAR_KEYWORD, option.VAR_POSITIONAL):
            continue
        if option.kind is not option.KEYWORD_ONLY or option.default is option.empty:
            raise UserError(f"Expected option `{option.name}` of '{name}' to be keyword-only, with a default.")
    return member
