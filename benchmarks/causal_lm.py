"""Step time and peak memory of causal language models in Transformers' Trainer and TRL's SFTTrainer, by their loss.

python benchmarks/causal_lm.py [--rounds 5] [--output results/bench/causal-lm.csv]

A Llama of 4 layers with V = 32,000 and D = 256 trains on 8 sequences of 512 tokens by AdamW in float32, without
gradient checkpointing. Every contender is a process of its own, all with the same number of threads, which waits for
its turn: in each round every contender takes one step, in an order that rotates. A step is forward, loss, backward and
optimizer as the Trainer runs them. Time is given as the median of the ratios to the plain Trainer's step of the same
round, with their quartiles. Memory is the peak of the resident set in a step beyond what was resident before it, the
median over the rounds; the first step, which makes the optimizer's state, is left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from labo import machine

# label_smoothing_factor of both trainers is 0.1.
CONTENDERS = (
    "transformers",
    "transformers, smoothed",
    "transformers, labo_loss",
    "transformers, fuse",
    "trl",
    "trl, smoothed",
    "trl, labo",
)
VOCABULARY, WIDTH, LAYERS, ROWS, LENGTH = 32_000, 256, 4, 8, 512


def main() -> None:
    """Run all contenders in alternation, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--contender", choices=CONTENDERS, help="be this contender (used by the benchmark itself)")
    asked = parser.parse_args()
    if asked.contender:
        contend(asked.contender, asked.rounds, asked.threads)
        return
    rows = table(alternate(asked.rounds, asked.threads), asked)
    writer = csv.DictWriter(asked.output.open("w", newline="") if asked.output else sys.stdout, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)


def alternate(rounds: int, threads: int) -> dict[str, list[dict[str, float]]]:
    """The seconds and peak bytes of each contender in each round."""
    command = [sys.executable, __file__, "--rounds", str(rounds), "--threads", str(threads), "--contender"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    running = {name: subprocess.Popen([*command, name], **pipes) for name in CONTENDERS}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for number in range(rounds + 1):  # the first step is not counted
        at = number % len(CONTENDERS)
        for name in CONTENDERS[at:] + CONTENDERS[:at]:
            process = running[name]
            process.stdin.write("go\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            if number:
                found[name].append(answer)
                print(name, answer, file=sys.stderr)
    for process in running.values():
        process.communicate()
    return found


def table(found: dict[str, list[dict[str, float]]], asked: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a contender: time and memory, and their ratios to those of the plain Trainer."""
    plain, rows = found[CONTENDERS[0]], []
    versions = {**machine.versions(), "trl": machine.package_version("trl")}
    for name, steps in found.items():
        ratios = [ours["seconds"] / theirs["seconds"] for ours, theirs in zip(steps, plain, strict=True)]
        low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        memory = [median(step["bytes"] for step in several) for several in (steps, plain)]
        rows.append(
            {
                "contender": name,
                "seconds": round(median(step["seconds"] for step in steps), 3),
                "ratio": round(median(ratios), 3),
                "ratio_low": round(low, 3),
                "ratio_high": round(high, 3),
                "peak_mib": round(memory[0] / 2**20, 1),
                "peak_ratio": round(memory[0] / memory[1], 3),
                "loss": round(steps[-1]["loss"], 4),
                "tokens": ROWS * LENGTH,
                "vocabulary": VOCABULARY,
                "width": WIDTH,
                "rounds": asked.rounds,
                "threads": asked.threads,
                **versions,
                "processor": machine.processor(),
            }
        )
    return rows


def contend(name: str, rounds: int, threads: int) -> None:
    """Train by one contender, a step for every line that is read."""
    import torch
    from transformers import TrainerCallback

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    torch.set_num_threads(threads)
    start: dict[str, float] = {}

    class Turns(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            sys.stdin.readline()
            Path("/proc/self/clear_refs").write_text("5")  # the peak so far
            start.update(seconds=time.perf_counter(), bytes=resident("VmRSS"))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            start.update(seconds=time.perf_counter() - start["seconds"], bytes=resident("VmHWM") - start["bytes"])

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                print(json.dumps({**start, "loss": logs["loss"]}), file=answers, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(name, folder, rounds + 1)
        trainer.add_callback(Turns())
        trainer.train()


def resident(name: str) -> int:
    """A figure of this process's memory, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def trainer_of(name: str, folder: str, steps: int) -> Any:
    """The trainer of a contender."""
    import torch
    import transformers
    from datasets import Dataset

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=688,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            pad_token_id=0,
        )
    )
    tokens = torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    data = Dataset.from_dict({"input_ids": tokens, "labels": tokens})
    settings: dict[str, Any] = {"per_device_train_batch_size": ROWS, "max_steps": steps, "use_cpu": True}
    settings |= {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1, "bf16": False}
    settings |= {"gradient_checkpointing": False, "dataloader_pin_memory": False, "learning_rate": 1e-4}
    settings |= {"label_smoothing_factor": 0.1 if "smoothed" in name else 0.0, "output_dir": folder}
    if name.startswith("transformers"):
        from labo.integrations.transformers import fuse, labo_loss

        given = {"compute_loss_func": labo_loss()} if "labo_loss" in name else {}
        model = fuse(model) if "fuse" in name else model
        arguments = transformers.TrainingArguments(**settings)
        return transformers.Trainer(model, arguments, train_dataset=data, **given)  # pyright: ignore[reportArgumentType]
    import trl
    from tokenizers import Tokenizer, models

    from labo.integrations.trl import LabelRegularizedSFTTrainer

    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **marks)
    kind: Any = LabelRegularizedSFTTrainer if "labo" in name else trl.SFTTrainer
    arguments = trl.SFTConfig(**settings, max_length=None)
    return kind(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)


if __name__ == "__main__":
    main()
