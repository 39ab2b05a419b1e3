"""The registry of members: create and describe them by name."""

from __future__ import annotations

import csv
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labo.errors import UserError, one_line, unknown
from labo.regularizers.search_space import Range, spanned

if TYPE_CHECKING:
    from labo.regularizers.base import Regularizer

# name -> "module:class". A new member is a file and a line here.
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
    "confident_learning": "labo.regularizers.confident_learning:ConfidentLearning",
    "sce": "labo.regularizers.sce:SymmetricCrossEntropy",
    "labo": "labo.regularizers.labo:LABO",
    "labo_auto": "labo.regularizers.labo_auto:LABOAuto",
}
_USER_REGISTRY: dict[str, type[Regularizer]] = {}


@dataclass(frozen=True)
class Description:
    """The entry of a member in `labo methods`; `needs` are the inputs it needs with its default options."""

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
    """Class decorator that registers your own member under its `name`.

    Raises:
        ValueError: the name is taken or empty.
    """
    if not member.name or member.name in _REGISTRY:
        raise UserError(f"Expected a regularizer with a name of its own, but got {member.name!r}.")
    _USER_REGISTRY[member.name] = member
    return member


def create(name: str, **options: Any) -> Regularizer:
    """Create the member `name` with options.

    `name` may also be "module:Class" for your own `Regularizer`. A name may fix options in brackets, as in
    "labo[prior=unigram]", so that a comparison can include several variants of a member.

    Raises:
        ValueError: unknown name or option (the message suggests the nearest), or a value out of range.

    Example:
        >>> create("label_smoothing", epsilon=0.2)
        LabelSmoothing(epsilon=0.2, convention='torch', padding_index=None)
        >>> create("label_smoothing[epsilon=0.3]").strength
        0.3
    """
    member, fixed = _variant(name)
    known = member.option_names()
    options = {**fixed, **options}
    for option in options:
        if option not in known:
            if not known:
                raise UserError(f"Method '{name}' has no options, but got '{option}'.")
            raise unknown(f"{name} option", option, known)
    try:
        return member(**options)
    except (TypeError, ValueError) as error:
        if not fixed:
            raise
        raise UserError(f"Method '{name}': {error}") from error


def candidates(name: str, given: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], ...]:
    """The option settings that `labo compare` tries for a member, in this order.

    They may depend on the options `given`: LABO has different ones with prior="memory".
    """
    member, fixed = _variant(name)
    settings: list[dict[str, Any]] = []
    for options in member.candidates_with({**fixed, **(given or {})}):
        if (candidate := {**options, **fixed}) not in settings:
            settings.append(candidate)
    return tuple(settings)


def ranges(name: str, given: Mapping[str, Any] | None = None) -> dict[str, Range]:
    """The range of each option in which `labo tune` searches: what its candidates span, or what the member declares."""
    member, fixed = _variant(name)
    options = {**fixed, **(given or {})}
    found = spanned(candidates(name, given), member.defaults(options))
    declared = {option: declared for option, declared in member.ranges.items() if option in found}
    return {option: each for option, each in {**found, **declared}.items() if option not in options}


def is_tuned(name: str) -> bool:
    """Whether `labo compare` tunes the options of a member; False for one that chooses them by itself."""
    return _variant(name)[0].tuned


def describe(name: str, given: Mapping[str, Any] | None = None) -> Description:
    """Summary, source, needs and default options of a member; the options may depend on those `given`."""
    member, fixed = _variant(name)
    defaults = {**member.defaults({**fixed, **(given or {})}), **fixed}
    return Description(name, member.summary, member.paper, member.year, create(name).needs, defaults)


def document(name: str) -> str:
    """The documentation of a member: summary, formula, options, needs, when to use it, source."""
    member, _ = _variant(name)
    return f"{name}: {member.summary}\n\n{inspect.getdoc(member)}"


def costs() -> dict[str, dict[str, dict[str, str]]]:
    """The measured cost of each member, by method and setting: "compute" (a ratio) and "state_bytes"."""
    by_method: dict[str, dict[str, dict[str, str]]] = {}
    with open(Path(__file__).with_name("costs.csv"), newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            by_method.setdefault(line["method"], {})[line["setting"]] = line
    return by_method


def _variant(name: str) -> tuple[type[Regularizer], dict[str, Any]]:
    """The member class, and the options in brackets after its name."""
    base, bracket, text = name.partition("[")
    if not bracket:
        return _member(name), {}
    fixed: dict[str, Any] = {}
    for part in text.removesuffix("]").split(","):
        option, equals, value = part.partition("=")
        if not name.endswith("]") or not equals or not option.strip() or option.strip() in fixed:
            raise UserError(f"Expected method '{name}' to be NAME[OPTION=VALUE,…].")
        fixed[option.strip()] = _parse_value(value.strip())
    member = _member(base)
    for option in fixed:
        if option not in member.option_names():
            raise unknown(f"{base} option", option, member.option_names())
    return member, fixed


def _parse_value(text: str) -> Any:
    """Parse a number, a boolean or a string."""
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
        return _user_member(name)
    raise unknown("method", name, available())


def _load(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _user_member(name: str) -> type[Regularizer]:
    from labo.regularizers.base import Regularizer

    try:
        member = _load(name)
    except Exception as error:  # a user module may raise anything
        raise UserError(
            f"Cannot load the method '{name}': {one_line(error)} (modules in the current folder are importable)."
        ) from error
    if not (isinstance(member, type) and issubclass(member, Regularizer)):
        raise UserError(f"Expected '{name}' to be a labo.regularizers.Regularizer, but it is not.")
    for option in list(inspect.signature(member.__init__).parameters.values())[1:]:
        if option.kind in (option.VAR_KEYWORD, option.VAR_POSITIONAL):
            continue
        if option.kind is not option.KEYWORD_ONLY or option.default is option.empty:
            raise UserError(f"Expected option `{option.name}` of '{name}' to be keyword-only, with a default.")
    return member
