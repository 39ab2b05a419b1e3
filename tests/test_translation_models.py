"""Encoder-decoders have the field's sizes, one table where the vocabulary is one, and read what they should."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from labo.errors import UserError
from labo.tasks.translation import models

IDS: dict[str, Any] = {"vocabulary_size": 50, "pad": 0, "unk": 1, "bos": 2, "eos": 3}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def on_meta(name: str, **ids: Any) -> nn.Module:
    with torch.device("meta"):
        return models.build(name, IDS | ids, {})


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("tiny", (128, 4, 2, 512)),
        ("transformer_iwslt_de_en", (512, 4, 6, 1024)),
        ("transformer_base", (512, 8, 6, 2048)),
        ("transformer_big", (1024, 16, 6, 4096)),
    ],
)
def test_parameters_are_those_of_torchs_transformer_and_one_table(name, sizes):
    width, heads, layers, inner = sizes
    with torch.device("meta"):
        body = nn.Transformer(width, heads, layers, layers, inner, batch_first=True)
    # It has a last normalisation on each side, which a network normalised after each sublayer has no use for.
    expected = count(body) - 4 * width
    assert count(on_meta(name)) == expected + 50 * width
    apart = on_meta(name, joint=False, source_vocabulary_size=70)
    assert count(apart) == expected + 120 * width


@pytest.mark.parametrize(("size", "published", "slack"), [("base", 65e6, 0.03), ("big", 213e6, 0.01)])
def test_parameters_are_as_published(size, published, slack):
    # Table 3 of the paper, for a vocabulary of "about 37000 tokens".
    assert count(on_meta(f"transformer_{size}", vocabulary_size=37_000)) == pytest.approx(published, rel=slack)


def test_one_vocabulary_is_one_table():
    model: Any = models.build("tiny", IDS, {})
    tables = (model.model.encoder.embed_tokens, model.model.decoder.embed_tokens, model.lm_head)
    assert len({table.weight.data_ptr() for table in tables}) == 1
    apart: Any = models.build("tiny", IDS | {"joint": False, "source_vocabulary_size": 70}, {})
    assert apart.model.encoder.embed_tokens.weight.shape == (70, 128)
    assert apart.model.decoder.embed_tokens.weight is apart.lm_head.weight
    assert apart.lm_head.weight.shape == (50, 128)


def test_first_weights():
    torch.manual_seed(0)
    model: Any = models.build("tiny", IDS | {"vocabulary_size": 2000}, {})
    table = model.lm_head.weight
    assert not table[0].any()
    assert table[1:].std().item() == pytest.approx(1 / math.sqrt(128), rel=0.02)
    first = model.model.encoder.layers[0].fc1
    assert first.weight.abs().max().item() == pytest.approx(math.sqrt(6 / (128 + 512)), rel=0.01)
    assert not first.bias.any()
    assert not model.final_logits_bias.any()
    positions = model.model.decoder.embed_positions.weight
    assert not positions.requires_grad
    assert positions[5, 3].item() == pytest.approx(math.sin(5 / 10000 ** (6 / 128)))  # sines first, then cosines
    assert positions[5, 64 + 3].item() == pytest.approx(math.cos(5 / 10000 ** (6 / 128)))
    torch.manual_seed(0)
    again: Any = models.build("tiny", IDS | {"vocabulary_size": 2000}, {})
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), again.parameters(), strict=True))


def test_padding_changes_nothing_and_nothing_later_is_seen():
    model = models.build("tiny", IDS, {"dropout": 0.5}).eval()
    source, target = torch.tensor([[5, 6, 3]]), torch.tensor([[2, 7, 8]])
    expected = model(input_ids=source, attention_mask=torch.ones(1, 3), decoder_input_ids=target).logits
    assert expected.shape == (1, 3, 50)
    padded = torch.tensor([[5, 6, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    found = model(input_ids=padded, attention_mask=mask, decoder_input_ids=torch.tensor([[2, 7, 9, 0]])).logits
    torch.testing.assert_close(found[:, :2], expected[:, :2], atol=1e-5, rtol=0)
    assert not torch.allclose(found[:, 2], expected[:, 2], atol=1e-3)


def test_dropout():
    model: Any = models.build("tiny", IDS, {"dropout": 0.4, "attention_dropout": 0.2, "learning_rate": 1.0})
    assert model.training
    assert model.model.encoder.dropout == model.model.decoder.layers[1].dropout == 0.4
    assert model.model.encoder.layers[0].self_attn.dropout == 0.2
    plain: Any = models.build("tiny", IDS, {})
    assert plain.config.dropout == models.PRESETS["tiny"].dropout


def test_what_the_decoder_reads():
    labels = torch.tensor([[7, 8, 9, 3], [9, 3, -100, -100], [-100, -100, -100, -100]])
    read = models.decoder_inputs(labels, IDS)
    assert read.tolist() == [[2, 7, 8, 9], [2, 9, 3, 0], [2, 0, 0, 0]]
    model: Any = models.build("tiny", IDS, {})
    assert torch.equal(read, model.prepare_decoder_input_ids_from_labels(labels=labels))


def saved(kind: str, folder: Path) -> str:
    """A small configuration of a model type, in a folder."""
    from transformers import AutoConfig

    small = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 64}
    small |= {f"{side}_{key}": 1 for side in ("encoder", "decoder") for key in ("layers", "attention_heads")}
    small |= {f"{side}_ffn_dim": 16 for side in ("encoder", "decoder")}
    config = AutoConfig.for_model(kind)
    for key, value in small.items():
        if hasattr(config, key):
            setattr(config, key, value)
    config.save_pretrained(folder)
    return f"hf/{folder}"


@pytest.mark.parametrize("kind", ["t5", "bart", "mbart", "m2m_100", "fsmt", "marian"])
def test_configurations_of_transformers(tmp_path, kind):
    model: Any = models.build(saved(kind, tmp_path), IDS, {"dropout": 0.25})
    config = model.config
    assert model.training
    assert getattr(config, "dropout_rate" if kind == "t5" else "dropout") == 0.25
    assert (config.pad_token_id, config.eos_token_id, config.decoder_start_token_id) == (0, 3, 2)
    assert count(model) < 20_000  # no table is that of the type's own vocabulary
    given = {"input_ids": torch.tensor([[5, 3]]), "decoder_input_ids": torch.tensor([[2, 6, 7]])}
    assert model(**given).logits.shape == (1, 3, 50)
    (tmp_path / "again.json").write_bytes(models.configuration(model))
    again: Any = models.build(f"hf/{tmp_path}/again.json", IDS, {"dropout": 0.25})
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(**given).logits, model.eval()(**given).logits)


@pytest.mark.parametrize(
    ("name", "ids", "settings", "told"),
    [
        ("tini", {}, {}, "Unknown model 'tini'; the nearest is 'tiny'"),
        ("tiny", {}, {"dropout": 1.0}, r"setting `dropout` to be in \[0, 1\), but got 1.0"),
        ("tiny", {}, {"attention_dropout": "0"}, "setting `attention_dropout`"),
        ("tiny", {"vocabulary_size": 3}, {}, "`vocabulary_size` to be a whole number of at least 4, but got 3"),
        ("tiny", {"source_vocabulary_size": 60}, {}, "one vocabulary size for a joint vocabulary, but got 60 and 50"),
        ("hf/t5", {"joint": False}, {}, "takes one vocabulary for both sides"),
        ("hf/bert", {}, {}, "'hf/bert' is no encoder-decoder that Transformers can build"),
        ("hf/./nowhere", {}, {}, "a model type, a folder or file .* but got './nowhere', which is not there"),
        ("hf/", {}, {}, "which is not there"),
    ],
)
def test_what_is_refused(name, ids, settings, told):
    with pytest.raises(UserError, match=told):
        models.build(name, IDS | ids, settings)


def test_how_many_pieces_a_network_takes():
    assert models.limits("transformer_big") == (1024, 1024)
    assert models.limits("hf/t5") == (None, None)
    assert models.limits("hf/led") == (16384, 1024)
    with pytest.raises(UserError, match="which is not there"):
        models.limits("hf/./nowhere")
    with pytest.raises(UserError, match="Unknown model"):
        models.limits("huge")


def test_names_are_described():
    for name in (*models.available(), "hf/anything"):
        assert models.describe(name)
    with pytest.raises(UserError, match="Unknown model"):
        models.describe("resnet")
