"""What translation tasks share: parts, vocabulary, label noise, filters, settings."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from labo.errors import UserError, unknown
from labo.tasks.base import Sample, Splits, Task
from labo.tasks.labels import parse_label_noise
from labo.tasks.translation import models
from labo.tasks.translation import text_files as reading
from labo.tasks.translation.batching import over_budget
from labo.tasks.translation.dataset import Sentences, said_of_cut
from labo.tasks.translation.drawing import Texts, drawn
from labo.tasks.translation.pairs import Pairs, wrong_targets
from labo.tasks.translation.vocabulary import BEGIN, END, KINDS, NORMALISATION, PAD, UNKNOWN, Vocabulary

MAX_LENGTH = 128
# What a run keeps of a network that is no preset.
CONFIGURATION = "config.json"
PARTS = ("train", "validation", "test")
# What cuts words apart in data that others have cut before.
_CUT, _LOOKED_AT = "@@ ", 1_000

# The last text read and the last vocabulary, by what they were made with: the seeds of a comparison often share both.
_TEXTS: dict[str, tuple[Texts, tuple[str, ...]]] = {}
_VOCABULARIES: dict[str, Vocabulary] = {}


class TranslationTask(Task):
    """Pairs of sentences in two languages, encoded by a vocabulary of the training part; scored by BLEU.

    The data's own parts validate and test; of data without them, the seed draws 1,000 pairs or a tenth. The vocabulary
    is trained on what is trained on, before label noise: noise changes which sentences are paired, not which there are.

    Args:
        data: where they lie; by default in the folder that LABO_DATA names.
        fetch: read them from the Hugging Face hub if they are not there.
        train_size: how many pairs to train on; all by default.
        label_noise: "SHARE,symmetric|pair" of the training and validation translations are those of another pair.
        vocabulary_size: how many pieces, of each side where they are not joint; by default the task's, or as many as
            the text supports.
        vocabulary_kind: "bpe" or "unigram".
        joint: one vocabulary for both sides.
        max_length: pairs with more pieces on a side are not trained on.
        max_ratio: nor those whose longer side has more than so many times the pieces of the shorter; off by default.
        options: what else makes the task again; None counts as not given.
    """

    kind = "translation"
    metric = "bleu"
    size: ClassVar[int] = 8_000
    epochs: ClassVar[int] = 20
    tokens: ClassVar[int] = 2_048
    # The learning rate of `tiny`, where the task wants another than Multi30k.
    tiny_rate: ClassVar[float | None] = None
    # Whether the seed draws the text itself, not only what is done with it.
    seeded: ClassVar[bool] = False

    def __init__(
        self,
        *,
        data: str | None = None,
        fetch: bool = False,
        train_size: int | None = None,
        label_noise: str | None = None,
        vocabulary_size: int | None = None,
        vocabulary_kind: str = "bpe",
        joint: bool = True,
        max_length: int = MAX_LENGTH,
        max_ratio: float | None = None,
        **options: Any,
    ) -> None:
        sizes = {"train_size": train_size, "vocabulary_size": vocabulary_size, "max_length": max_length}
        _check(sizes, {"joint": joint, "fetch": fetch}, vocabulary_kind, max_ratio)
        # What is as it would be anyway is left out, so that a task made again is the same task.
        usual = {"fetch": False, "vocabulary_kind": "bpe", "joint": True, "max_length": MAX_LENGTH}
        given = {"data": data, "fetch": fetch, **sizes, "label_noise": label_noise, "joint": joint, **options}
        given |= {"vocabulary_kind": vocabulary_kind, "max_ratio": max_ratio}
        super().__init__(**{key: value for key, value in given.items() if value not in (None, usual.get(key))})
        self.data, self.fetch, self.train_size = data, fetch, train_size
        self.vocabulary_size, self.vocabulary_kind, self.joint = vocabulary_size, vocabulary_kind, joint
        self.max_length, self.max_ratio = max_length, max_ratio
        self.noise = parse_label_noise(label_noise) if label_noise else None

    @property
    @abstractmethod
    def languages(self) -> tuple[str, str]:
        """(source, target)."""

    @abstractmethod
    def read(self, seed: int) -> Texts:
        """The pairs of each part; where validation or test is not there, it is drawn from train."""

    def splits(self, seed: int) -> Splits:
        """See `Task.splits`; the parts are `Sentences`, and `files` is what the vocabulary is saved as.

        Raises:
            UserError: the data are not there or will not do, or a size does not fit them.
        """
        texts, notes = self._texts(seed)
        generator = torch.Generator().manual_seed(seed)
        parts, told = drawn(texts, self.train_size, generator)
        vocabulary = self._vocabulary(parts["train"], seed, drawn=bool(told) or self.train_size is not None)
        encoded = {part: Sentences.of(parts[part], vocabulary) for part in PARTS}
        if self.noise:
            for part in ("train", "validation"):
                encoded[part] = self._noisy(parts[part], encoded[part], vocabulary, generator)
        encoded["train"], filtered = self._filtered(encoded["train"])
        notes = (*notes, *told, *vocabulary.notes, *filtered)
        about, files = self._about(vocabulary), vocabulary.to_bytes()
        train, validation, test = (encoded[part] for part in PARTS)
        return Splits(train, validation, test, (), about, notes, files)

    def model(
        self, classes: tuple[str, ...], preprocessing: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> nn.Module:
        """See `Task.model`: an encoder and decoder, forward(input_ids, attention_mask, labels) gives logits (N, T, V).

        The classes are the pieces of the target side, which `preprocessing` counts.
        """
        model: Any = models.build(settings["model"], preprocessing, settings)
        known = [limit for limit in models.limits_of(model.config) if limit is not None]
        # Training pairs of this length have the end mark too.
        if known and preprocessing.get("max_length", 0) >= min(known):
            raise UserError(
                f"Expected option `max_length` to be at most {min(known) - 1}, one less than the pieces that model "
                f"'{settings['model']}' takes, but got {preprocessing['max_length']}."
            )
        return model

    def model_files(self, model: Any, settings: Mapping[str, Any]) -> dict[str, bytes]:
        """See `Task.model_files`: the configuration of a network from elsewhere, which may go or change there."""
        return {CONFIGURATION: models.configuration(model)} if settings["model"].startswith(models.OUTSIDE) else {}

    def saved_settings(self, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """See `Task.saved_settings`."""
        file = folder / CONFIGURATION
        outside = str(settings["model"]).startswith(models.OUTSIDE) and file.is_file()
        return {**settings, "model": f"{models.OUTSIDE}{file.resolve()}"} if outside else dict(settings)

    def notes(self, splits: Splits, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """See `Task.notes`: pairs longer than a batch or, among those not trained on, than the network takes."""
        limits = models.limits(settings["model"])
        train: Any = splits.train
        parts: dict[str, Any] = {"validation": splits.validation, "test": splits.test}
        alone = over_budget(train.lengths, settings["tokens"])
        cut = [note for name, part in parts.items() for note in said_of_cut(part, limits, name)]
        return (*splits.notes, *alone, *cut)

    def default_settings(self, model: Any = None) -> dict[str, Any]:
        """See `Task.default_settings`: AdamW, a warm-up, then a rate that falls with the square root of the steps.

        `tokens` is the budget of a batch, padding included (see `TokenBatches`); the betas are the Transformer's, the
        learning rate and the dropout the model's (see `models.usual`).
        Source: Vaswani et al., *Attention Is All You Need*, 2017.
        """
        name = "tiny" if model is None else model
        learning_rate, dropout = models.usual(name)
        if name == "tiny" and self.tiny_rate is not None:
            learning_rate = self.tiny_rate
        optimizer = {"optimizer": "adamw", "learning_rate": learning_rate, "adam_beta1": 0.9, "adam_beta2": 0.98}
        rate = {"weight_decay": 1e-4, "schedule": "inverse_sqrt", "warmup": 0.1, "precision": "float32"}
        return {
            "epochs": self.epochs,
            "tokens": self.tokens,
            **optimizer,
            **rate,
            "model": "tiny",
            "dropout": dropout,
            "beam": 5,
            "length_penalty": 1.0,
        }

    def optimizer_candidates(self, model: Any = None) -> tuple[dict[str, Any], ...]:
        """See `Task.optimizer_candidates`."""
        defaults = self.default_settings(model)
        twice, half = ({"learning_rate": defaults["learning_rate"] * factor} for factor in (2, 0.5))
        other = {"dropout": 0.1 if defaults["dropout"] >= 0.3 else 0.3}
        return {}, twice, other, half, twice | other, {"weight_decay": 1e-2}

    def read_inputs(self, path: Path, preprocessing: Mapping[str, Any]) -> Any:
        """The sentences to translate, as lines of text: those of a file, or the first column of a .tsv file."""
        if reading.holds_both(path):
            return reading.read_pairs(path, None, (preprocessing["source"], preprocessing["target"])).source
        return reading.read_lines(path)

    def read_examples(
        self, path: Path, preprocessing: Mapping[str, Any], classes: Sequence[str], target: str | None
    ) -> Any:
        """Sentences and their translations as `Pairs`: of a file that holds both, or with those in the file `target`.

        Encode them by the run's vocabulary: `Sentences.of(pairs, Vocabulary.from_bytes(files))`.
        """
        if target is None and not reading.holds_both(path):
            raise UserError(f"Expected a .tsv or .parquet file, or --target FILE with the translations of '{path}'.")
        languages = (preprocessing["source"], preprocessing["target"])
        return reading.read_pairs(path, None if target is None else Path(target), languages)

    def samples(self, examples: Any, preprocessing: Mapping[str, Any]) -> list[Sample]:
        """See `Task.samples`: both sides, by language."""
        names = (preprocessing["source"], preprocessing["target"])
        return [
            dict(zip(names, pair, strict=True)) for pair in zip(examples.source_text, examples.target_text, strict=True)
        ]

    def _texts(self, seed: int) -> tuple[Texts, tuple[str, ...]]:
        """(the parts without pairs that say nothing, what is to be said of them); kept for the next seed."""
        key = self._key(self.fingerprint(), seed if self.seeded else None)
        if key not in _TEXTS:
            _TEXTS.clear()
            texts, notes = {}, []
            for part, pairs in self.read(seed).items():
                texts[part], empty = pairs.without_empty()
                if empty:
                    notes.append(f"{empty:,} {part} pairs with an empty side are left out.")
                if not len(texts[part]):
                    raise UserError(f"The {part} part has no pair with words on both sides.")
            if any(_CUT in line for line in texts["train"].target[:_LOOKED_AT]):
                notes.append(f"The sentences are cut by '{_CUT.strip()}' already: BLEU is not that of plain text.")
            _TEXTS[key] = texts, tuple(notes)
        return _TEXTS[key]

    def _key(self, *parts: Any) -> str:
        without = {key: value for key, value in self.options.items() if key != "label_noise"}
        return json.dumps([self.name, without, *parts], sort_keys=True)

    def _vocabulary(self, train: Pairs, seed: int, drawn: bool) -> Vocabulary:
        key = self._key(self.fingerprint(), seed if drawn or self.seeded else None)
        if key not in _VOCABULARIES:
            _VOCABULARIES.clear()
            _VOCABULARIES[key] = Vocabulary.train(
                train.source,
                train.target,
                size=self.vocabulary_size or self.size,
                kind=self.vocabulary_kind,
                joint=self.joint,
                shrink=self.vocabulary_size is None,
            )
        return _VOCABULARIES[key]

    def _noisy(self, pairs: Pairs, right: Sentences, vocabulary: Vocabulary, generator: torch.Generator) -> Sentences:
        assert self.noise is not None
        wrong = replace(pairs, target=wrong_targets(pairs.target, *self.noise, generator))
        return replace(Sentences.of(wrong, vocabulary), before_noise=right.target)

    def _filtered(self, train: Sentences) -> tuple[Sentences, list[str]]:
        kept, long, unequal = train.filtered(self.max_length, self.max_ratio)
        notes, of = [], f"of {len(train):,} training pairs"
        if long:
            notes.append(f"{long:,} {of} have a side of more than {self.max_length} pieces and are left out.")
        if unequal:
            notes.append(f"{unequal:,} {of} have sides that differ more than {self.max_ratio:g}-fold and are left out.")
        if not len(kept):
            raise UserError(f"No training pair is left: {' '.join(notes)}")
        return kept, notes

    def _about(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """What is needed to read new text and to build the network again, beside the vocabulary's files."""
        source, target = self.languages
        return {
            "source": source,
            "target": target,
            "vocabulary_size": vocabulary.size,
            "source_vocabulary_size": vocabulary.source_size,
            "joint": vocabulary.joint,
            "vocabulary_kind": self.vocabulary_kind,
            "vocabulary_digest": vocabulary.digest(),
            "normalisation": NORMALISATION,
            "pad": PAD,
            "unk": UNKNOWN,
            "bos": BEGIN,
            "eos": END,
            "max_length": self.max_length,
        }


def _check(sizes: Mapping[str, int | None], flags: Mapping[str, bool], kind: str, max_ratio: float | None) -> None:
    for name, number in sizes.items():
        if number is not None and (type(number) is not int or number < 1):
            raise UserError(f"Expected option `{name}` to be a whole number above 0, but got {number!r}.")
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise UserError(f"Expected option `{name}` to be true or false, but got {flag!r}.")
    if max_ratio is not None and (type(max_ratio) not in (int, float) or not max_ratio >= 1):
        raise UserError(f"Expected option `max_ratio` to be a number of at least 1, but got {max_ratio!r}.")
    if kind not in KINDS:
        raise unknown("vocabulary kind", kind, KINDS)
