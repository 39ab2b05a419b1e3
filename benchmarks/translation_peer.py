"""Beside a peer: the same translator trained by `labo` and by Transformers' Seq2SeqTrainer with label smoothing.

    LABO_DATA=FOLDER python benchmarks/translation_peer.py --threads 1 --output results/peer/multi30k-de-en

Both have the network, its first weights, the vocabulary, the pairs, AdamW, which weights decay, the learning rate and
its course, label smoothing 0.1 and the decoding in common. What differs is each side's own: its loss, its loop and its
batches (`labo`: a budget of tokens; the peer: a fixed number of sentences grouped by length, as many as `labo` has on
average). They train one after the other in this process. A line has BLEU on the test part and the training speed in
tokens, source and target without padding, a second; OUTPUT.jsonl gets the lines as they come, and what is there is not
run again.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from labo import machine, tasks
from labo.experiment import run_trial
from labo.experiment import settings as flat
from labo.experiment.evaluators import make_evaluator
from labo.records import trial as trials
from labo.records.storage import append_line, read_lines
from labo.settings import TrainingSettings
from labo.training import optimizers
from labo.training.loop import TrainingLoop

SMOOTHING = 0.1
# What tells one line from another.
KEY = ("side", "task", "seed", "epochs", "train_size", "threads", "learning_rate")


def by_labo(model: Any, loss: Any, splits: Any, settings: TrainingSettings, seed: int, folder: Path) -> None:
    """Train with this project's loop."""
    TrainingLoop(model, splits, loss, settings, seed=seed, folder=folder).run()


def by_peer(model: Any, loss: Any, splits: Any, settings: TrainingSettings, seed: int, folder: Path) -> None:
    """Train with Seq2SeqTrainer, as its example for translation does."""
    from torch.utils.data import Dataset
    from transformers import PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments

    class Pairs(Dataset[Any]):
        def __len__(self) -> int:
            return len(splits.train)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"index": index, "input_ids": splits.train.features[index]}

    from labo.tasks.translation.batching import TokenBatches

    batches = len(TokenBatches(splits.train.lengths, settings.tokens or 0, seed))
    size = round(len(splits.train) / batches)
    steps = math.ceil(math.ceil(len(splits.train) / size) * (settings.epochs or 0))
    asked = Seq2SeqTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs or 0,
        weight_decay=settings.weight_decay,
        per_device_train_batch_size=size,
        train_sampling_strategy="group_by_length",
        label_smoothing_factor=SMOOTHING,
        max_grad_norm=0.0,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Seq2SeqTrainer(
        model=model,
        args=asked,
        train_dataset=Pairs(),
        data_collator=lambda rows: splits.train.__getitems__([row["index"] for row in rows]),
    )
    trainer.optimizer_cls_and_kwargs = optimizers.optimizer_options(settings)
    # By the Trainer's own rule, as on the other side, neither biases nor layer normalisations decay.
    trainer.lr_scheduler = optimizers.make_schedule(settings, trainer.create_optimizer(), steps)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def told(side: str, asked: argparse.Namespace) -> dict[str, Any]:
    """What a line says of what is run: `KEY`; a train size of None stands for all pairs."""
    usual = tasks.create(asked.task).default_settings()
    given = {"side": side, "task": asked.task, "seed": asked.seed, "epochs": asked.epochs or usual["epochs"]}
    given |= {"train_size": asked.train_size, "threads": asked.threads}
    return given | {"learning_rate": asked.learning_rate or usual["learning_rate"]}


def measured(side: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Train one side; its line."""
    task = tasks.create(asked.task, **({"train_size": asked.train_size} if asked.train_size else {}))
    line = told(side, asked)
    given = {"epsilon": SMOOTHING, **{key: line[key] for key in ("epochs", "learning_rate")}}
    settings = flat.resolve(task.default_settings(), "label_smoothing", given)
    splits = task.splits(asked.seed)
    made = trials.Trial(asked.task, "label_smoothing", asked.seed, settings, dict(task.options))
    model, loss = run_trial.build(made, task, splits)
    own, _ = flat.split(settings, "label_smoothing")
    judge = make_evaluator(task.kind, splits.preprocessing, splits.files, own)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        train = {"labo": by_labo, "transformers": by_peer}[side]
        train(model, loss, splits, TrainingSettings.from_mapping(own), asked.seed, Path(folder))
        seconds = time.perf_counter() - began
        found = judge.test_metrics(model, loss, splits, Path(folder))
    train: Any = splits.train
    tokens = int(train.features.lengths.sum() + train.target.lengths.sum()) * own["epochs"]
    line |= found["metrics"]
    line |= {"tokens_per_second": tokens / seconds, "training_seconds": seconds, "signatures": found["signatures"]}
    return line | {"command": ["python", "benchmarks/translation_peer.py", *sys.argv[1:]], "on": machine.versions()}


def main() -> None:
    """Train what is not there yet, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="multi30k-de-en")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--train-size", type=int)
    parser.add_argument("--threads", type=int, default=1, help="of torch, on either side")
    parser.add_argument("--sides", default="labo,transformers")
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    path = Path(f"{asked.output}.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {tuple(line.get(name) for name in KEY): line for line in read_lines(path)}
    for side in asked.sides.split(","):
        key = tuple(told(side, asked).values())
        if key not in done:
            done[key] = measured(side, asked)
            append_line(path, done[key])
    for key, line in done.items():
        about = ", ".join(f"{name} {value}" for name, value in zip(KEY, key, strict=True) if value is not None)
        print(f"{about}: BLEU {line['bleu']:.2f}, {line['tokens_per_second']:,.0f} training tokens a second")


if __name__ == "__main__":
    main()
