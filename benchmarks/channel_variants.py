"""What a noise channel adds to a memory, tried on digits: accuracy on right test labels, one line per run.

    OMP_NUM_THREADS=1 python benchmarks/channel_variants.py --output results/bench/channel-variants.csv

The networks are those of `labo train digits` (400 training images, the multilayer perceptron, 60 epochs) in a loop of
their own. `decided` is what `labo_auto` chooses between mild and strong on halves; `quarters` the same sum of z-scores
from networks that train on a quarter of the data and predict the rest.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labo import regularizers, tasks
from labo.outer import trust
from labo.outer.channel import fit_channel, posterior_labels
from labo.regularized_loss import LabelRegularizedLoss
from labo.splitting import equal_parts

NOISE = ("0", "0.2,symmetric", "0.4,symmetric", "0.2,pair", "0.35,pair")
MEMORY: Mapping[str, Any] = trust.STRONG.options
# Strong memories beside the one of `labo_auto`.
STRENGTHS = {
    "strong": {},
    "strong, gamma 1.5, decay .9": {"sharpness": 1.5, "decay": 0.9},
    "strong, alpha .85, epsilon .8": {"alpha": 0.85, "epsilon": 0.8},
    "strong, alpha .9": {"alpha": 0.9},
}
PATIENCE = 8


class Digits:
    """The data of one seed, and networks trained on parts of them."""

    def __init__(self, noise: str, seed: int) -> None:
        options = {} if noise == "0" else {"label_noise": noise}
        self.task, self.seed = tasks.create("digits", **options), seed
        self.splits = self.task.splits(seed)
        self.settings = self.task.default_settings(None)
        self.target = self.splits.train.target
        self.features = torch.as_tensor(self.splits.train.features)

    def train(
        self,
        method: str,
        options: Mapping[str, Any],
        rows: Tensor,
        held_out: Tensor,
        *,
        posterior: Tensor | None = None,
        targets: Tensor | None = None,
        stop: bool = False,
    ) -> dict[str, Any]:
        """Train on `rows`; logits of `held_out`, their mean probabilities over epochs, test accuracy, agreement.

        `targets` (N, C) replace the labels of the loss. With `stop`, the logits are those of the epoch with the lowest
        NLL of the validation labels, for which `PATIENCE` epochs are waited.
        """
        regularizer = regularizers.create(method, **options)
        if "examples" in regularizer.missing:
            regularizer.provide(examples=len(self.target))
        if posterior is not None:
            regularizer.provide(posterior=posterior)
        loss = LabelRegularizedLoss(regularizer)
        torch.manual_seed(self.seed)
        model = self.task.model(self.splits.classes, self.splits.preprocessing, self.settings)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.002, weight_decay=0.01)
        mean, logits, best, since, epochs = 0.0, None, float("inf"), 0, 0
        for _ in range(60):
            model.train()
            for batch in rows[torch.randperm(len(rows))].split(64):
                optimizer.zero_grad()
                if targets is None:
                    value = loss(model(self.features[batch]), self.target[batch], indices=batch)
                else:
                    value = torch.nn.functional.cross_entropy(model(self.features[batch]), targets[batch])
                value.backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                now = model(self.features[held_out])
                mean, epochs = mean + now.softmax(-1), epochs + 1
                if stop:
                    validation = model(torch.as_tensor(self.splits.validation.features))
                    nll = torch.nn.functional.cross_entropy(validation, self.splits.validation.target).item()
                    since += 1
                    if nll < best:
                        best, logits, since = nll, now, 0
                    if since >= PATIENCE:
                        break
                else:
                    logits = now
        with torch.no_grad():
            test = model(torch.as_tensor(self.splits.test.features)).argmax(-1)
        memory, agreement = loss.regularizer.prediction_memory, 0.0
        if memory is not None and memory.values is not None:
            recalled = memory.all_distributions(len(self.target), len(self.splits.classes))
            agreement = (recalled.argmax(-1) == self.target)[rows].double().mean().item()
        accuracy = (test == self.splits.test.target).double().mean().item()
        return {"logits": logits, "mean": mean / epochs, "test": accuracy, "agreement": agreement}

    def final(self, method: str, options: Mapping[str, Any], **inputs: Any) -> float:
        """Test accuracy of a network trained on all rows."""
        every = torch.arange(len(self.target))
        return self.train(method, options, every, every[:0], **inputs)["test"]

    def out_of_fold(self, count: int, method: str, options: Mapping[str, Any], *, stop: bool) -> tuple[Tensor, Tensor]:
        """(logits, mean probabilities over epochs) of every row by a network that has not seen it."""
        parts = equal_parts(self.target, count, self.seed)
        logits = torch.empty(len(self.target), len(self.splits.classes))
        means = torch.empty_like(logits)
        for number, part in enumerate(parts):
            rest = torch.cat(parts[:number] + parts[number + 1 :])
            run = self.train(method, options, rest, part, stop=stop)
            logits[part], means[part] = run["logits"], run["mean"]
        return logits, means


def variants(noise: str, seed: int) -> dict[str, float]:
    """The test accuracy of each variant, and what halves and quarters say."""
    digits = Digits(noise, seed)
    target, found = digits.target, {}
    found["smoothing .1"] = digits.final("label_smoothing", {"epsilon": 0.1})
    found["mild"] = digits.final("labo", trust.MILD.options)
    for name, changes in STRENGTHS.items():
        found[name] = digits.final("labo", {**MEMORY, **changes})
    # Every candidate predicts both halves.
    halves = equal_parts(target, 2, seed)
    candidates = {"mild": trust.MILD.options, **{name: {**MEMORY, **change} for name, change in STRENGTHS.items()}}
    held_out: dict[str, list[trust.HeldOut]] = {}
    for name, options in candidates.items():
        for half in range(2):
            run = digits.train("labo", options, halves[1 - half], halves[half])
            held_out.setdefault(name, []).append(trust.HeldOut(run["logits"], target[halves[half]], run["agreement"]))
    for name in candidates:
        if name != "mild":
            found[f"z of {name} against mild"] = trust.compare(held_out["mild"], held_out[name]).z
        if name not in ("mild", "strong"):
            found[f"z of {name} against strong"] = trust.compare(held_out["strong"], held_out[name]).z
    quarter, *others = equal_parts(target, 4, seed)
    rest = torch.cat(others)
    small = [
        trust.HeldOut(run["logits"], target[rest], run["agreement"])
        for options in (trust.MILD.options, MEMORY)
        for run in [digits.train("labo", options, quarter, rest)]
    ]
    evidence = trust.compare(small[:1], small[1:])
    found["z of quarters"], found["memorized, quarters"] = evidence.z, evidence.memorized or 0.0
    found["memorized, halves"] = trust.compare(held_out["mild"], held_out["strong"]).memorized or 0.0
    # What the channel adds.
    order = torch.cat(halves)
    pooled = torch.empty(len(target), len(digits.splits.classes))
    pooled[order] = torch.cat([half.logits for half in held_out["strong"]])
    channel = fit_channel(pooled, target, seed=seed)
    found["share found, halves"] = channel.wrong
    alpha = {"alpha": min(0.95, 0.6 + channel.wrong)}
    found["alpha .6 + share"] = digits.final("labo", {**MEMORY, **alpha})
    for name, (logits, mean) in {
        "2 folds": (pooled, None),
        "3 folds, smoothing": digits.out_of_fold(3, "label_smoothing", {"epsilon": 0.3}, stop=True),
        "3 folds, memory": digits.out_of_fold(3, "labo", MEMORY, stop=False),
    }.items():
        fitted = fit_channel(logits, target, seed=seed)
        posterior = posterior_labels(logits, target, fitted)
        found[f"posterior, {name}"] = digits.final("labo", {"prior": "channel"}, posterior=posterior)
        sure = posterior.amax(-1, keepdim=True)
        weighted = sure * posterior + (1 - sure) / posterior.shape[1]
        found[f"posterior, undecided flattened, {name}"] = digits.final(
            "labo", {"prior": "channel"}, posterior=weighted
        )
        relabelled = posterior.argmax(-1)
        own, digits.target = digits.target, relabelled
        found[f"strong memory on posterior labels, {name}"] = digits.final("labo", MEMORY)
        digits.target = own
        if mean is not None:
            prior = (2 * mean.clamp(min=1e-8).log()).softmax(-1)
            options = {"prior": "channel", "alpha": 0.8, "epsilon": 0.3}
            found[f"out-of-fold memory as prior, {name}"] = digits.final("labo", options, posterior=prior)
    return found


def main() -> None:
    """Write all cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("channel-variants.csv"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[400, 401])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    with open(asked.output, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("seed", "noise", "variant", "value"))
        for seed in asked.seeds:
            for noise in NOISE:
                for variant, value in variants(noise, seed).items():
                    writer.writerow((seed, noise, variant, f"{value:.6g}"))
                file.flush()


if __name__ == "__main__":
    main()
