"""Encoder-decoder networks by name: presets of the field's sizes, and any that Transformers has a configuration of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labo.errors import UserError, first_line, unknown
from labo.networks import logits_of

# Positions of a preset: the longest sentence in pieces.
POSITIONS = 1024
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")
TRANSFORMERS_PREFIX = "hf/"


@dataclass(frozen=True)
class Preset:
    """The sizes of a Transformer: `layers` per side, model `width`, `inner` width of the feed-forward layers, `heads`.

    `dropout` and `learning_rate` are its defaults in training.
    """

    layers: int
    width: int
    inner: int
    heads: int
    dropout: float
    learning_rate: float
    summary: str


PRESETS: dict[str, Preset] = {
    "tiny": Preset(2, 128, 512, 4, 0.1, 4e-3, "2 + 2 layers of 128, 0.9M parameters beside the tables, for a CPU"),
    "transformer_iwslt_de_en": Preset(6, 512, 1024, 4, 0.3, 5e-4, "6 + 6 layers of 512, 31.5M; the field's for IWSLT"),
    "transformer_base": Preset(6, 512, 2048, 8, 0.1, 5e-4, "6 + 6 layers of 512, 44.1M; Vaswani et al., 2017, base"),
    "transformer_big": Preset(6, 1024, 4096, 16, 0.3, 5e-4, "6 + 6 layers of 1,024, 176M; Vaswani et al., 2017, big"),
}

# Defaults of any other network.
_DROPOUT, _LEARNING_RATE = 0.1, 5e-4


def available() -> tuple[str, ...]:
    """The names of the presets; hf/NAME is a model too.

    Example:
        >>> "transformer_base" in available()
        True
    """
    return tuple(PRESETS)


def describe(name: str) -> str:
    """One line on a model; imports nothing.

    Raises:
        UserError: unknown name.
    """
    if name.startswith(TRANSFORMERS_PREFIX):
        return "a Transformers encoder-decoder with fresh weights, hf/MODEL_TYPE, hf/FOLDER or hf/NAME"
    return _preset(name).summary


def default_hyperparameters(name: Any) -> dict[str, float]:
    """The default learning rate and dropout of the model `name`; 5e-4 and 0.1 for one that is not a preset.

    Source: the rate of `tiny` is measured (docs/translation.md); the others are fairseq's recipes for IWSLT and WMT.

    Example:
        >>> default_hyperparameters("transformer_iwslt_de_en")
        {'learning_rate': 0.0005, 'dropout': 0.3}
    """
    preset = PRESETS.get(str(name))
    if preset is None:
        return {"learning_rate": _LEARNING_RATE, "dropout": _DROPOUT}
    return {"learning_rate": preset.learning_rate, "dropout": preset.dropout}


def build(name: str, preprocessing: Mapping[str, Any], settings: Mapping[str, Any]) -> nn.Module:
    """The model `name` with fresh weights from torch's global generator.

    A preset is a Transformer with layer normalisation after each sublayer, ReLU and sinusoidal positions. With a joint
    vocabulary, both embeddings and the output layer share one matrix; otherwise the target embedding and the output
    layer do.

    Args:
        name: one of `available()`, or hf/ and a model type, a folder or file of a configuration, or a name on the hub.
        preprocessing: of the task: `vocabulary_size` (of the target side), `pad`, `bos`, `eos`, and
            `source_vocabulary_size` and `joint` where the sides differ.
        settings: `dropout`, `attention_dropout` and `activation_dropout`, in [0, 1), a preset's own by default; other
            keys are ignored.

    Returns:
        A Transformers model: (input_ids (N, S), attention_mask (N, S), decoder_input_ids (N, T)) to logits (N, T, V).
        `decoder_inputs` makes the last of these from labels.

    Raises:
        UserError: unknown name, a setting or a size out of range, or an unsuitable configuration.

    Source: Vaswani et al., *Attention Is All You Need*, 2017; initial weights as in fairseq's Transformer.

    Example:
        >>> ids = {"vocabulary_size": 100, "pad": 0, "bos": 2, "eos": 3}
        >>> model = build("tiny", ids, {"dropout": 0.2})
        >>> sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        938496
    """
    for key in ("vocabulary_size", "source_vocabulary_size"):
        size = preprocessing.get(key, 4)
        if type(size) is not int or size < 4:
            raise UserError(f"Expected `{key}` to be a whole number of at least 4, but got {size!r}.")
    for key in DROPOUTS:
        value = settings.get(key, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise UserError(f"Expected setting `{key}` to be in [0, 1), but got {value!r}.")
    if name.startswith(TRANSFORMERS_PREFIX):
        return _from_transformers(name, preprocessing, settings)
    return _from_preset(_preset(name), preprocessing, settings)


def limits(name: str) -> tuple[int | None, int | None]:
    """The maximum number of pieces of (a source, a target) of the model `name`, without building it; see `limits_of`.

    Raises:
        UserError: unknown name, or a configuration that cannot be read.

    Example:
        >>> limits("tiny")
        (1024, 1024)
    """
    if not name.startswith(TRANSFORMERS_PREFIX):
        _preset(name)
        return POSITIONS, POSITIONS
    try:
        return limits_of(_load_configuration(name.removeprefix(TRANSFORMERS_PREFIX)))
    except UserError:
        raise
    except Exception as error:  # Transformers raises many kinds of error for a bad configuration
        raise _not_buildable(name, error) from error


def limits_of(config: Any) -> tuple[int | None, int | None]:
    """The maximum number of pieces of (a source, a target) of a configuration, special tokens included.

    None for a side without a limit, as with relative positions.
    """
    limits = []
    for side in ("encoder", "decoder"):
        names = (f"max_{side}_position_embeddings", "max_position_embeddings")
        limits.append(next((getattr(config, name) for name in names if hasattr(config, name)), None))
    return limits[0], limits[1]


def configuration(model: Any) -> bytes:
    """The configuration of a network as JSON; hf/FILE.json rebuilds the network from it."""
    config = model.config.to_dict()
    config.pop("_name_or_path", None)  # a path of one machine
    return (json.dumps(config, indent=1, sort_keys=True) + "\n").encode()


def decoder_inputs(labels: Tensor, preprocessing: Mapping[str, Any]) -> Tensor:
    """The decoder's inputs for `labels` (N, T): the begin token, then each label but the last; int64 (N, T).

    Ignored labels (-100) become padding.

    Example:
        >>> decoder_inputs(torch.tensor([[7, 8, 3], [9, 3, -100]]), {"bos": 2, "pad": 0})
        tensor([[2, 7, 8],
                [2, 9, 3]])
    """
    begin = labels.new_full((len(labels), 1), preprocessing["bos"])
    previous = labels[:, :-1]
    return torch.cat([begin, previous.masked_fill(previous < 0, preprocessing["pad"])], 1)


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise unknown("model", name, (*PRESETS, "hf/NAME"))
    return PRESETS[name]


def _token_ids(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    ids = {f"{token}_token_id": preprocessing[token] for token in ("pad", "bos", "eos")}
    return ids | {"decoder_start_token_id": preprocessing["bos"], "forced_eos_token_id": None}


def _from_preset(preset: Preset, preprocessing: Mapping[str, Any], settings: Mapping[str, Any]) -> nn.Module:
    from transformers import GenerationConfig, MarianConfig, MarianMTModel

    target = preprocessing["vocabulary_size"]
    sides = {"layers": preset.layers, "ffn_dim": preset.inner, "attention_heads": preset.heads}
    config = MarianConfig(
        vocab_size=preprocessing.get("source_vocabulary_size", target),
        decoder_vocab_size=target,
        share_encoder_decoder_embeddings=preprocessing.get("joint", True),
        d_model=preset.width,
        max_position_embeddings=POSITIONS,
        activation_function="relu",
        scale_embedding=True,
        **{key: settings.get(key, preset.dropout if key == "dropout" else 0.0) for key in DROPOUTS},
        **{f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in sides.items()},
        **_token_ids(preprocessing),
    )
    if config.share_encoder_decoder_embeddings and config.vocab_size != target:
        raise UserError(
            f"Expected one vocabulary size for a joint vocabulary, but got {config.vocab_size} and {target}."
        )
    model = MarianMTModel(config)
    _initialise(model)
    model.generation_config = GenerationConfig()
    return model


@torch.no_grad()
def _initialise(model: nn.Module) -> None:
    """Glorot-uniform linear layers; embeddings N(0, 1 / width), which the scaled embedding turns into N(0, 1)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":  # tied to the embedding
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif type(module) is nn.Embedding:  # not a subclass: those are positions
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.embedding_dim))
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])


def _from_transformers(name: str, preprocessing: Mapping[str, Any], settings: Mapping[str, Any]) -> nn.Module:
    from transformers import AutoModelForSeq2SeqLM, GenerationConfig

    source = preprocessing.get("source_vocabulary_size", preprocessing["vocabulary_size"])
    if not preprocessing.get("joint", True) or source != preprocessing["vocabulary_size"]:
        raise UserError(f"Model '{name}' takes one vocabulary for both sides: give joint=true.")
    try:
        config = _load_configuration(name.removeprefix(TRANSFORMERS_PREFIX))
        for key, value in {"vocab_size": source, "forced_bos_token_id": None, **_token_ids(preprocessing)}.items():
            setattr(config, key, value)
        for key in ("decoder_vocab_size", "src_vocab_size", "tgt_vocab_size"):
            if hasattr(config, key):
                setattr(config, key, source)
        for key in DROPOUTS:
            attribute = next((name for name in (key, f"{key}_rate") if hasattr(config, name)), None)
            if key in settings and attribute is not None:
                setattr(config, attribute, settings[key])
        model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
        model.generation_config = GenerationConfig()  # a published one has decoding options of its own
    except UserError:
        raise
    except Exception as error:  # Transformers raises many kinds of error for a bad configuration
        raise _not_buildable(name, error) from error
    return _check_logits(name, model, preprocessing)


def _load_configuration(source: str) -> Any:
    """The configuration in a file or folder, of a model type, or of the hub."""
    from transformers import CONFIG_MAPPING, AutoConfig

    path = Path(source)
    local = path.is_absolute() or source.startswith(".") or source.count("/") > 1 or path.suffix == ".json"
    if not source or (local and not path.exists()):
        raise UserError(
            "Expected a model type, a folder or file of a configuration or a name on the hub after 'hf/', but got "
            f"'{source}', which is not there."
        )
    if source in CONFIG_MAPPING and not path.exists():
        return AutoConfig.for_model(source)
    return AutoConfig.from_pretrained(source)


def _check_logits(name: str, model: Any, preprocessing: Mapping[str, Any]) -> nn.Module:
    """`model` in training mode, after a forward pass on an empty sentence."""
    sentence = torch.tensor([[preprocessing["eos"]]])
    begin = torch.tensor([[preprocessing["bos"]]])
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            shape = tuple(logits_of(model.eval()(input_ids=sentence, decoder_input_ids=begin)).shape)
    except Exception as error:  # each model fails in its own way on inputs that it does not take
        raise UserError(f"Model '{name}' does not take sentences: {first_line(error)}.") from error
    expected = (1, 1, preprocessing["vocabulary_size"])
    if shape != expected:
        raise UserError(f"Expected model '{name}' to give logits of shape {expected} for a sentence, but got {shape}.")
    return model.train()


def _not_buildable(name: str, error: Exception) -> UserError:
    return UserError(f"Model '{name}' is no encoder-decoder that Transformers can build: {first_line(error)}.")
