"""A small causal language model, its tokens and labels, and what its logits give."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import labo

V, ALPHA, BETA = 50, 0.3, 4.0
OPTIONS: dict[str, Any] = {"alpha": ALPHA, "beta": BETA}
TOKENS = torch.randint(4, V, (4, 6), generator=torch.Generator().manual_seed(0))
# Completions alone: the prompts differ in length.
LABELS = TOKENS.masked_fill(torch.arange(6) < torch.tensor([[0], [2], [3], [5]]), -100)
SMALL: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL |= {"vocab_size": V, "initializer_range": 0.5, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def rows(logits: Tensor, labels: Tensor = LABELS) -> tuple[Tensor, Tensor]:
    return logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1)


def by_logits(model: Any, labels: Tensor = LABELS, reduction: str = "mean") -> Tensor:
    logits = model(input_ids=TOKENS).logits
    return labo.labo_cross_entropy(*rows(logits, labels), **OPTIONS, impl="reference", reduction=reduction)


def nll(model: Any, labels: Tensor = LABELS) -> float:
    with torch.no_grad():
        return F.cross_entropy(*rows(model(input_ids=TOKENS).logits, labels)).item()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return found


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(SMALL | options)))
