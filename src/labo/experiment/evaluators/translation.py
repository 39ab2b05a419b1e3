"""Translators: BLEU and chrF of translations, NLL and calibration of tokens, and soft labels of whole sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from labo.errors import NonFiniteLogitsError
from labo.experiment.evaluators.base import Evaluator
from labo.metrics.temperature import search_temperature
from labo.metrics.translation import DEFAULT_TOKENIZER, TokenScores, bleu, chrf, signatures
from labo.networks import logits_of
from labo.records.storage import write_object
from labo.records.trial import FIGURES, write_translations
from labo.reduction import as_rows
from labo.tasks.translation.dataset import Sentences, truncation_notes
from labo.tasks.translation.decoding import translate
from labo.tasks.translation.models import limits_of
from labo.tasks.translation.text_files import Pairs
from labo.tasks.translation.vocabulary import Vocabulary

# The temperature is fitted on at most so many logits, of tokens evenly spaced over the validation split.
TEMPERATURE_ELEMENTS = 2**24
# Tokens of a batch to be scored, times the vocabulary: as many bytes as a large batch of training has.
SCORED_ELEMENTS = 2**25
# The figure of soft labels: sentences, their maximum length, and the likeliest pieces at each position.
FIGURE_SENTENCES, MAX_FIGURE_LENGTH, FIGURE_PIECES = 6, 24, 4


class TranslationEvaluator(Evaluator):
    """One sentence per example.

    `settings` may have `beam` and `length_penalty`. The validation translations of an epoch are greedy, which is faster
    and only chooses the best epoch. BLEU and chrF are of plain text against the raw references, with sacreBLEU's
    signatures. Sentences longer than the network takes are truncated.
    """

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary that the run was trained with."""
        return Vocabulary.from_bytes(self.files, self.preprocessing["vocabulary_digest"])

    @property
    def tokenizer(self) -> str:
        """SacreBLEU's tokenizer for the target language; runs of earlier versions have the default."""
        return self.preprocessing.get("bleu_tokenizer", DEFAULT_TOKENIZER)

    def bleu(self, hypotheses: Sequence[str], examples: Any) -> float:
        """BLEU of the translations of examples."""
        return bleu(hypotheses, examples.target_text, tokenizer=self.tokenizer)[0]

    @override
    def examples(self, read: Any) -> Any:
        """Pairs of text, encoded."""
        return Sentences.of(read, self.vocabulary) if isinstance(read, Pairs) else read

    @override
    def signatures(self) -> dict[str, str]:
        """SacreBLEU's."""
        return signatures(self.tokenizer)

    @override
    def notes(self, model: Any, examples: Any, what: str) -> tuple[str, ...]:
        """How the pairs were read, and how many are truncated."""
        return (*examples.notes, *truncation_notes(examples, _limits(model), what))

    @override
    def validate(self, model: nn.Module, examples: Any, *, best: bool) -> tuple[dict[str, float], float]:
        """The best epoch has the highest BLEU; as long as it is 0, the highest chrF, which counts characters."""
        tokens = self.tokens(model, examples, (1.0,))[0]
        hypotheses = self.translations(model, examples, beam=1)
        score = self.bleu(hypotheses, examples)
        curve = {"validation_nll": tokens["nll"], "validation_perplexity": tokens["perplexity"]}
        value = -score if score > 0 or not best else 100 - chrf(hypotheses, examples.target_text)[0]
        return {**curve, "validation_bleu": score}, value

    @override
    def tuning_metrics(self, model: nn.Module, examples: Any) -> dict[str, float]:
        temperature = self.temperature(model, examples)
        plain, scaled = self.tokens(model, examples, (1.0, temperature))
        score = self.bleu(self.translations(model, examples), examples)
        return {"bleu": score, "nll": plain["nll"], "nll_scaled": scaled["nll"], "ece": plain["ece"]}

    @override
    def test_metrics(self, model: nn.Module, loss: Any, splits: Any, folder: Path) -> dict[str, Any]:
        """Writes the translations of the test split and their references too."""
        temperature = self.temperature(model, splits.validation)
        hypotheses = self.translations(model, splits.test)
        metrics, diagrams = self._metrics(model, splits.test, hypotheses, temperature)
        write_translations(folder, hypotheses, splits.test.target_text)
        validation = splits.validation.truncated(_limits(model))
        sentences = sentence_labels(model, loss.regularizer, validation, self.vocabulary)
        figures = {"classes": [], "temperature": temperature, "reliability": diagrams, "labels": None}
        write_object(folder / FIGURES, {**figures, "sentences": sentences})
        return {"metrics": metrics, "signatures": self.signatures()}

    @override
    def scores(self, model: nn.Module, examples: Any, fitted: Mapping[str, float]) -> dict[str, float]:
        return self._metrics(model, examples, self.translations(model, examples), fitted["temperature"])[0]

    def _metrics(
        self, model: nn.Module, examples: Any, hypotheses: Sequence[str], temperature: float
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """(metrics, reliability diagrams without and with the temperature)."""
        metrics = self._text_scores(hypotheses, examples)
        plain, scaled = self.tokens(model, examples, (1.0, temperature))
        metrics |= {"nll": plain["nll"], "perplexity": plain["perplexity"], "ece": plain["ece"]}
        metrics |= {"nll_scaled": scaled["nll"], "ece_scaled": scaled["ece"], "temperature": temperature}
        return metrics, {"raw": plain["reliability"], "scaled": scaled["reliability"]}

    def search_scores(self, model: nn.Module, examples: Any, beam: int) -> dict[str, float]:
        """BLEU and chrF of translations by beam search of this width."""
        return self._text_scores(self.translations(model, examples, beam=beam), examples)

    def _text_scores(self, hypotheses: Sequence[str], examples: Any) -> dict[str, float]:
        return {"bleu": self.bleu(hypotheses, examples), "chrf": chrf(hypotheses, examples.target_text)[0]}

    def translations(self, model: nn.Module, examples: Any, *, beam: int | None = None) -> list[str]:
        """The network's translations of examples, as text."""
        sources = examples.features
        return self.translated(model, [sources[index].tolist() for index in range(len(sources))], beam=beam)

    def translated(
        self, model: nn.Module, sources: Sequence[Sequence[int]], *, beam: int | None = None, **options: Any
    ) -> list[str]:
        """The network's translations of encoded sources, as text; `options` as in `decoding.translate`."""
        width = self.settings.get("beam", 5) if beam is None else beam
        options.setdefault("length_penalty", self.settings.get("length_penalty", 1.0))
        return self.vocabulary.decode(translate(model, sources, beam=width, **options))

    def tokens(self, model: nn.Module, examples: Any, temperatures: Sequence[float]) -> list[dict[str, Any]]:
        """The scores of next-token predictions (teacher forcing) at each temperature.

        Raises:
            NonFiniteLogitsError: the logits are NaN or infinite.
        """
        scores = [TokenScores() for _ in temperatures]
        for logits, labels in self._logits(model, examples):
            for temperature, score in zip(temperatures, scores, strict=True):
                score.add(logits if temperature == 1.0 else logits / temperature, labels)
        return [score.result() for score in scores]

    def temperature(self, model: nn.Module, examples: Any) -> float:
        """The temperature with the least NLL on a sample of the examples' tokens."""
        total = int(examples.truncated(_limits(model)).target.lengths.sum())
        stride = max(1, -(-total * self.preprocessing["vocabulary_size"] // TEMPERATURE_ELEMENTS))
        sample, seen = [], 0
        for logits, labels in self._logits(model, examples):
            chosen = torch.arange(len(labels))[-seen % stride :: stride]  # none where the batch ends before the next
            sample.append((logits[chosen], labels[chosen]))
            seen += len(labels)
        return search_temperature(torch.cat([part for part, _ in sample]), torch.cat([part for _, part in sample]))

    def _logits(self, model: nn.Module, examples: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """(logits (n, V) float32, labels (n,)) of the tokens of examples, batch by batch, on the CPU."""
        device, training = next(model.parameters()).device, model.training
        model.eval()
        examples = examples.truncated(_limits(model))
        budget = max(1, SCORED_ELEMENTS // self.preprocessing["vocabulary_size"])
        try:
            for indices in batches_by_length(examples.lengths, budget):
                batch = {name: value.to(device) for name, value in examples.__getitems__(indices).items()}
                labels = batch.pop("labels")
                with torch.no_grad():
                    logits = logits_of(model(**batch))[labels >= 0].float().cpu()
                if not bool(logits.isfinite().all()):
                    raise NonFiniteLogitsError
                yield logits, labels[labels >= 0].cpu()
        finally:
            model.train(training)


def _limits(model: Any) -> tuple[int | None, int | None]:
    return limits_of(model.config)


def batches_by_length(lengths: Tensor, budget: int) -> Iterator[list[int]]:
    """Indices of sentences of similar length, in batches of at most `budget` tokens, padding included."""
    batch: list[int] = []
    for index in lengths.argsort(stable=True).tolist():
        if batch and (len(batch) + 1) * int(lengths[index]) > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def sentence_labels(model: nn.Module, regularizer: Any, examples: Any, vocabulary: Any) -> list[dict[str, Any]]:
    """The soft labels of the first short sentences of `examples`: the likeliest pieces at each position.

    The label is what `Regularizer.labels` gives for the network's logits, given the reference before the position.

    Returns:
        For each sentence its "source" and "target" text and "places": the "reference" piece, its "mass" in the label,
        and "top", pairs of piece and mass. Empty for a method without labels, or with labels for training alone.
    """
    if regularizer.missing_from({}):
        return []
    device, training = next(model.parameters()).device, model.training
    model.eval()
    sentences = []
    short = (examples.target.lengths <= MAX_FIGURE_LENGTH).nonzero().flatten()[:FIGURE_SENTENCES].tolist()
    for index in short:
        batch = {name: value.to(device) for name, value in examples.__getitems__([index]).items()}
        target = batch.pop("labels")[0]
        with torch.no_grad():
            rows = replace(as_rows(logits_of(model(**batch))[0].float(), target, None, -100), given={})
            labels = regularizer.eval().labels(rows)
        if labels is None:
            break
        text = {"source": examples.source_text[index], "target": examples.target_text[index]}
        sentences.append({**text, "places": _label_of_positions(labels.cpu(), target.cpu(), vocabulary)})
    model.train(training)
    return sentences


def _label_of_positions(labels: Tensor, target: Tensor, vocabulary: Any) -> list[dict[str, Any]]:
    mass, pieces = labels.topk(min(FIGURE_PIECES, labels.shape[-1]))
    names = [vocabulary.pieces(row) for row in pieces.tolist()]
    return [
        {
            "reference": vocabulary.pieces([piece])[0],
            "mass": round(float(row[piece]), 5),
            "top": [[name, round(value, 5)] for name, value in zip(likeliest, masses, strict=True)],
        }
        for piece, row, likeliest, masses in zip(target.tolist(), labels, names, mass.tolist(), strict=True)
    ]
