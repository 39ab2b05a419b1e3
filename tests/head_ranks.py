"""Small networks of Transformers trained for a step by the Trainer: by one process, or a part of it by each of two."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

VOCABULARY, EXAMPLES, RATE = 50, 12, 0.1
NETWORKS = ("marian", "llama", "llama, tied")


def network(name: str) -> Any:
    """A network without dropout, its head's weights large enough for peaked predictions."""
    from transformers import LlamaConfig, LlamaForCausalLM, MarianConfig, MarianMTModel

    torch.manual_seed(0)
    if name == "marian":
        layers: dict[str, Any] = {f"{side}_layers": 1 for side in ("encoder", "decoder")}
        layers |= {f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")}
        layers |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
        ids: dict[str, Any] = {"pad_token_id": 0, "decoder_start_token_id": 2, "eos_token_id": 3}
        sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "d_model": 16, "max_position_embeddings": 32}
        made = MarianMTModel(
            MarianConfig(dropout=0.0, init_std=0.3, forced_eos_token_id=None, **sizes, **layers, **ids)
        )
        nn.init.normal_(made.final_logits_bias)  # as in published Marian models, where it is trained
        return made
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            initializer_range=0.3,
            max_position_embeddings=32,
            tie_word_embeddings="tied" in name,
        )
    )


class Sentences(torch.utils.data.Dataset):
    """Sentences whose labels end at other places."""

    def __init__(self, name: str) -> None:
        draw = torch.Generator().manual_seed(1)
        self.sources = torch.randint(4, VOCABULARY, (EXAMPLES, 6), generator=draw)
        self.labels = torch.randint(4, VOCABULARY, (EXAMPLES, 6), generator=draw)
        if name != "marian":
            self.labels = self.sources.clone()
        for index in range(EXAMPLES):
            self.labels[index, 1 + index * 5 // EXAMPLES :] = -100

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.sources[index], "labels": self.labels[index]}


def batch(name: str) -> dict[str, Tensor]:
    """All sentences."""
    examples = [Sentences(name)[index] for index in range(EXAMPLES)]
    return {key: torch.stack([example[key] for example in examples]) for key in examples[0]}


def trained(name: str, folder: Path, *, linear: bool, parts: int = 1, method: str = "labo", **options: Any) -> Any:
    """The trainer after one step over all sentences, given in so many parts to each process."""
    from transformers import TrainingArguments

    from labo import LabelRegularizedLoss, regularizers
    from labo.integrations.transformers import LabelRegularizedTrainer

    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    made = options.pop("model", None)
    known: dict[str, Any] = {
        "per_device_train_batch_size": EXAMPLES // parts // ranks,
        "gradient_accumulation_steps": parts,
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
        "output_dir": str(folder),
    }
    given = {"alpha": 0.3, "beta": 4.0} if method == "labo" else {}
    trainer = LabelRegularizedTrainer(
        model=network(name) if made is None else made,
        args=TrainingArguments(**(known | options)),
        train_dataset=Sentences(name),
        eval_dataset=Sentences(name),
        loss=LabelRegularizedLoss(regularizers.create(method, **given)),
        linear=linear,
    )
    trainer.train()
    return trainer


def weights(trainer: Any) -> dict[str, Tensor]:
    """The network's weights, copied."""
    inner = getattr(trainer.model, "module", trainer.model)
    return {name: value.detach().clone() for name, value in inner.state_dict().items()}


def work(rank: int, world: int, folder: Path, port: int) -> None:
    """One rank: the weights of every network after a step, its loss with them, and what went wrong."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    results: dict[str, Any] = {}
    try:
        for name in NETWORKS:
            options = {"ddp_backend": "gloo", "per_device_eval_batch_size": EXAMPLES // world}
            trainer = trained(name, folder / name, linear=True, **options)
            results[name] = weights(trainer)
            results[f"{name}, evaluated"] = trainer.evaluate()["eval_loss"]
        dist.destroy_process_group()
    except Exception:
        results["failed"] = traceback.format_exc()
    torch.save(results, folder / f"{rank}.pt")
