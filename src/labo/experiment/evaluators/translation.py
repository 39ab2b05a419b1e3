"""Translators: BLEU and chrF of what they say, NLL and calibration of the tokens that they predict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labo.experiment import translations
from labo.experiment.evaluators import soft_sentences
from labo.experiment.evaluators.base import Judge, NoNumbersError
from labo.metrics.temperature import fit_temperature
from labo.metrics.translation import TokenScores, bleu, chrf, signatures
from labo.networks import logits_of
from labo.records.storage import write_object
from labo.tasks.translation.decoding import translate
from labo.tasks.translation.models import limits_of
from labo.tasks.translation.pairs import Pairs
from labo.tasks.translation.sentences import Sentences, said_of_cut
from labo.tasks.translation.vocabulary import Vocabulary

# So many logits, evenly spaced over the validation tokens, tell the temperature.
TEMPERATURE_ELEMENTS = 2**24
# Tokens of a batch that is scored, times the vocabulary: as many bytes as a large batch of training has.
SCORED_ELEMENTS = 2**25


class Translation(Judge):
    """A sentence an example.

    `settings` may have `beam` and `length_penalty`. Translations of an epoch are greedy: they are quicker, and choose
    the epoch alone. BLEU and chrF are of plain text against the raw lines, with sacreBLEU's signatures. Of a side that
    is longer than the network takes, the beginning is read.
    """

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The one that the run was trained with."""
        return Vocabulary.from_bytes(self.files, self.preprocessing["vocabulary_digest"])

    def examples(self, read: Any) -> Any:
        """See `Judge.examples`: pairs of text, encoded."""
        return Sentences.of(read, self.vocabulary) if isinstance(read, Pairs) else read

    def signatures(self) -> dict[str, str]:
        """See `Judge.signatures`: sacreBLEU's."""
        return signatures()

    def notes(self, model: Any, examples: Any, what: str) -> tuple[str, ...]:
        """See `Judge.notes`: pairs that are cut."""
        return said_of_cut(examples, _limits(model), what)

    def of_epoch(self, model: nn.Module, examples: Any, *, best: bool) -> tuple[dict[str, float], float]:
        """See `Judge.of_epoch`: the best epoch has the highest BLEU."""
        tokens = self.tokens(model, examples, (1.0,))[0]
        score, _ = bleu(self.translations(model, examples, beam=1), examples.target_text)
        found = {"validation_nll": tokens["nll"], "validation_perplexity": tokens["perplexity"]}
        return {**found, "validation_bleu": score}, -score

    def for_tuning(self, model: nn.Module, examples: Any) -> dict[str, float]:
        """See `Judge.for_tuning`."""
        temperature = self.temperature(model, examples)
        plain, scaled = self.tokens(model, examples, (1.0, temperature))
        score, _ = bleu(self.translations(model, examples), examples.target_text)
        return {"bleu": score, "nll": plain["nll"], "nll_scaled": scaled["nll"], "ece": plain["ece"]}

    def at_the_end(self, model: nn.Module, loss: Any, splits: Any, folder: Path) -> dict[str, Any]:
        """See `Judge.at_the_end`: the translations of the test split are kept too, with their references."""
        temperature = self.temperature(model, splits.validation)
        hypotheses = self.translations(model, splits.test)
        metrics, tokens = self._measured(model, splits.test, hypotheses, temperature)
        translations.write(folder, hypotheses, splits.test.target_text)
        known = splits.validation.cut(_limits(model))
        shown = soft_sentences.of(model, loss.regularizer, known, self.vocabulary)
        figures = {"classes": [], "temperature": temperature, "reliability": tokens, "labels": None}
        write_object(folder / "figures.json", {**figures, "sentences": shown})
        return {"metrics": metrics, "signatures": self.signatures()}

    def scores(self, model: nn.Module, examples: Any, temperature: float) -> dict[str, float]:
        """See `Judge.scores`."""
        return self._measured(model, examples, self.translations(model, examples), temperature)[0]

    def _measured(
        self, model: nn.Module, examples: Any, hypotheses: Sequence[str], temperature: float
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """(metrics, reliability raw and scaled)."""
        metrics = {name: score(hypotheses, examples.target_text)[0] for name, score in (("bleu", bleu), ("chrf", chrf))}
        plain, scaled = self.tokens(model, examples, (1.0, temperature))
        metrics |= {"nll": plain["nll"], "perplexity": plain["perplexity"], "ece": plain["ece"]}
        metrics |= {"nll_scaled": scaled["nll"], "ece_scaled": scaled["ece"], "temperature": temperature}
        return metrics, {"raw": plain["reliability"], "scaled": scaled["reliability"]}

    def search_scores(self, model: nn.Module, examples: Any, beam: int) -> dict[str, float]:
        """BLEU and chrF of translations by a beam of this width."""
        found = self.translations(model, examples, beam=beam)
        return {"bleu": bleu(found, examples.target_text)[0], "chrf": chrf(found, examples.target_text)[0]}

    def translations(self, model: nn.Module, examples: Any, *, beam: int | None = None) -> list[str]:
        """The network's translations of examples, as text."""
        return self.translated(model, [row.tolist() for row in rows(examples.features)], beam=beam)

    def translated(
        self, model: nn.Module, sources: Sequence[Sequence[int]], *, beam: int | None = None, **options: Any
    ) -> list[str]:
        """The network's translations of encoded sources, as text; `options` as in `decoding.translate`."""
        wide = self.settings.get("beam", 5) if beam is None else beam
        options.setdefault("length_penalty", self.settings.get("length_penalty", 1.0))
        return self.vocabulary.decode(translate(model, sources, beam=wide, **options))

    def tokens(self, model: nn.Module, examples: Any, temperatures: Sequence[float]) -> list[dict[str, Any]]:
        """The scores of predicted tokens, the reference's before them known, at each temperature.

        Raises:
            NoNumbersError: the logits are NaN or infinite.
        """
        counted = [TokenScores() for _ in temperatures]
        for logits, labels in self._logits(model, examples):
            for temperature, found in zip(temperatures, counted, strict=True):
                found.add(logits if temperature == 1.0 else logits / temperature, labels)
        return [found.result() for found in counted]

    def temperature(self, model: nn.Module, examples: Any) -> float:
        """The temperature with the least NLL on some tokens of the examples."""
        total = int(examples.cut(_limits(model)).target.lengths.sum())
        stride = max(1, -(-total * self.preprocessing["vocabulary_size"] // TEMPERATURE_ELEMENTS))
        kept, seen = [], 0
        for logits, labels in self._logits(model, examples):
            places = torch.arange(len(labels))[-seen % stride :: stride]  # none where the batch ends before the next
            kept.append((logits[places], labels[places]))
            seen += len(labels)
        return fit_temperature(torch.cat([part for part, _ in kept]), torch.cat([part for _, part in kept]))

    def _logits(self, model: nn.Module, examples: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """(logits (n, V) float32, labels (n,)) of the tokens of examples, some sentences at a time, on the CPU."""
        device, training = next(model.parameters()).device, model.training
        model.eval()
        examples = examples.cut(_limits(model))
        budget = max(1, SCORED_ELEMENTS // self.preprocessing["vocabulary_size"])
        try:
            for places in by_length(examples.lengths, budget):
                batch = {name: value.to(device) for name, value in examples.__getitems__(places).items()}
                labels = batch.pop("labels")
                with torch.no_grad():
                    logits = logits_of(model(**batch))[labels >= 0].float().cpu()
                if not bool(logits.isfinite().all()):
                    raise NoNumbersError
                yield logits, labels[labels >= 0].cpu()
        finally:
            model.train(training)


def _limits(model: Any) -> tuple[int | None, int | None]:
    return limits_of(model.config)


def rows(ragged: Any) -> Iterator[Tensor]:
    """The sequences of a `Ragged`."""
    return (ragged[index] for index in range(len(ragged)))


def by_length(lengths: Tensor, budget: int) -> Iterator[list[int]]:
    """Places of sentences of like length, in batches of at most `budget` tokens, padding included."""
    found: list[int] = []
    for place in lengths.argsort(stable=True).tolist():
        if found and (len(found) + 1) * int(lengths[place]) > budget:
            yield found
            found = []
        found.append(place)
    if found:
        yield found
