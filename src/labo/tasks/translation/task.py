"""What translation tasks share (parts, vocabulary, label noise, filters, settings), and the task of a named corpus."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import override

from labo.errors import UserError, unknown
from labo.settings import TrainingSettings
from labo.tasks.base import Sample, Splits, Task
from labo.tasks.data_files import fingerprint, hf_fingerprint
from labo.tasks.file_limits import absolute
from labo.tasks.labels import parse_label_noise
from labo.tasks.translation import corpus_files, models, side_names, text_files
from labo.tasks.translation.batching import over_budget_notes
from labo.tasks.translation.corpora import CORPORA, HubDataset
from labo.tasks.translation.dataset import Sentences, draw_parts, truncation_notes, wrong_translations
from labo.tasks.translation.side_names import DEFAULT_TOKENIZER
from labo.tasks.translation.text_files import Pairs
from labo.tasks.translation.text_notes import overlap_notes, text_notes
from labo.tasks.translation.vocabulary import BEGIN, END, KINDS, NORMALISATION, PAD, UNKNOWN, Vocabulary
from labo.wording import counted

MAX_LENGTH = 128
# The configuration of a network that is not a preset, saved with a run.
CONFIGURATION = "config.json"
PARTS = ("train", "validation", "test")

# The last text and the last vocabulary by their key: the seeds of a comparison often share both.
_TEXTS: dict[str, tuple[dict[str, Pairs], tuple[str, ...]]] = {}
_VOCABULARIES: dict[str, Vocabulary] = {}


class TranslationTask(Task):
    """Sentence pairs in two languages, encoded by a vocabulary trained on the training part; scored by BLEU.

    The data's own parts validate and test; where one is missing, the seed draws a tenth of the pairs, at most 1,000.
    The vocabulary is trained before label noise, which changes the pairing of sentences, not the sentences.

    Args:
        data: where they are; by default in the folder that LABO_DATA names.
        fetch: read them from the Hugging Face hub if there are no files.
        train_size: number of training pairs; all by default.
        label_noise: "SHARE,symmetric|pair": this share of the training and validation translations is replaced by
            those of other pairs.
        vocabulary_size: number of pieces, per side where they are not joint; by default the task's, or as many as the
            text supports.
        vocabulary_kind: "bpe" or "unigram".
        joint: one vocabulary for both sides.
        max_length: training pairs with more pieces on a side are left out.
        max_ratio: so are those whose sides differ in length by more than this factor; off by default.
        bleu_tokenizer: sacreBLEU's tokenizer; by default that of the target language (see `side_names`).
        options: further options that recreate the task; None counts as not given.
    """

    kind = "translation"
    metric = "bleu"
    recorded_defaults = ("optimizer", "adam_beta1", "precision")
    default_vocabulary_size: int = 8_000
    epochs: int = 20
    tokens: int = 2_048
    # The learning rate of `tiny` on this task, where it differs from the model's default.
    tiny_learning_rate: ClassVar[float | None] = None
    # Whether the seed draws the text itself.
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
        bleu_tokenizer: str | None = None,
        **options: Any,
    ) -> None:
        if bleu_tokenizer is not None:
            side_names.check_tokenizer(bleu_tokenizer)
        sizes = {"train_size": train_size, "vocabulary_size": vocabulary_size, "max_length": max_length}
        _check(sizes, {"joint": joint, "fetch": fetch}, vocabulary_kind, max_ratio)
        # Defaults are left out of the options, so that a task compares equal to itself recreated.
        defaults = {"fetch": False, "vocabulary_kind": "bpe", "joint": True, "max_length": MAX_LENGTH}
        options = {"data": data, "fetch": fetch, **sizes, "label_noise": label_noise, "joint": joint, **options}
        options |= {"vocabulary_kind": vocabulary_kind, "max_ratio": max_ratio, "bleu_tokenizer": bleu_tokenizer}
        super().__init__(**{key: value for key, value in options.items() if value not in (None, defaults.get(key))})
        self.data, self.fetch, self.train_size = data, fetch, train_size
        self.vocabulary_size, self.vocabulary_kind, self.joint = vocabulary_size, vocabulary_kind, joint
        self.max_length, self.max_ratio, self.bleu_tokenizer = max_length, max_ratio, bleu_tokenizer
        self.noise = parse_label_noise(label_noise) if label_noise else None

    @property
    @abstractmethod
    def languages(self) -> tuple[str, str]:
        """(source, target)."""

    @abstractmethod
    def read(self, seed: int) -> dict[str, Pairs]:
        """The pairs of each part; validation and test are drawn from train where they are missing."""

    @override
    def splits(self, seed: int) -> Splits:
        """The parts are `Sentences`, and `files` are those of the vocabulary.

        Raises:
            UserError: there are no data or unsuitable ones, or a size does not fit them.
        """
        texts, notes = self._texts(seed)
        generator = torch.Generator().manual_seed(seed)
        parts, drawn_notes = draw_parts(texts, self.train_size, generator)
        vocabulary = self._vocabulary(parts["train"], seed, drawn=bool(drawn_notes) or self.train_size is not None)
        encoded = {part: Sentences.of(parts[part], vocabulary) for part in PARTS}
        if self.noise:
            for part in ("train", "validation"):
                encoded[part] = self._with_noise(parts[part], encoded[part], vocabulary, generator)
        encoded["train"], filter_notes = self._filter(encoded["train"])
        preprocessing = self._preprocessing(vocabulary, parts["train"])
        notes = (*notes, *drawn_notes, *overlap_notes(parts), *vocabulary.notes, *filter_notes)
        notes = (*notes, *self._tokenizer_notes(preprocessing["bleu_tokenizer"]))
        train, validation, test = (encoded[part] for part in PARTS)
        return Splits(train, validation, test, (), preprocessing, notes, vocabulary.to_bytes())

    @override
    def model(
        self, classes: tuple[str, ...], preprocessing: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> nn.Module:
        """An encoder-decoder, forward(input_ids, attention_mask, labels) returns logits (N, T, V).

        The classes are the pieces of the target vocabulary, whose number is in `preprocessing`.
        """
        model: Any = models.build(settings["model"], preprocessing, settings)
        limits = [limit for limit in models.limits_of(model.config) if limit is not None]
        # A training pair of this length has an end-of-sentence token beside it.
        if limits and preprocessing.get("max_length", 0) >= min(limits):
            raise UserError(
                f"Expected option `max_length` to be at most {min(limits) - 1}, one less than the pieces that model "
                f"'{settings['model']}' takes, but got {preprocessing['max_length']}."
            )
        return model

    @override
    def model_files(self, model: Any, settings: Mapping[str, Any]) -> dict[str, bytes]:
        """The configuration of a network that is not a preset; its source may change or go."""
        external = settings["model"].startswith(models.TRANSFORMERS_PREFIX)
        return {CONFIGURATION: models.configuration(model)} if external else {}

    @override
    def saved_settings(self, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        file = folder / CONFIGURATION
        external = str(settings["model"]).startswith(models.TRANSFORMERS_PREFIX) and file.is_file()
        return {**settings, "model": f"{models.TRANSFORMERS_PREFIX}{absolute(file)}"} if external else dict(settings)

    @override
    def notes(self, splits: Splits, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """Pairs longer than a batch; validation and test pairs longer than the network takes."""
        limits = models.limits(settings["model"])
        train: Any = splits.train
        parts: dict[str, Any] = {"validation": splits.validation, "test": splits.test}
        over_budget = over_budget_notes(train.lengths, settings["tokens"])
        truncated = [note for name, part in parts.items() for note in truncation_notes(part, limits, name)]
        return (*splits.notes, *over_budget, *truncated)

    @override
    def training_settings(self, model: Any = None) -> TrainingSettings:
        """AdamW, warm-up, then a learning rate that falls with the square root of steps.

        `tokens` is the budget of a batch, padding included (see `TokenBatches`); the betas are the Transformer's,
        the learning rate is the model's (see `models.default_hyperparameters`).
        Source: Vaswani et al., *Attention Is All You Need*, 2017.
        """
        name = "tiny" if model is None else model
        learning_rate = models.default_hyperparameters(name)["learning_rate"]
        if name == "tiny" and self.tiny_learning_rate is not None:
            learning_rate = self.tiny_learning_rate
        return TrainingSettings(
            epochs=self.epochs,
            tokens=self.tokens,
            learning_rate=learning_rate,
            adam_beta2=0.98,
            weight_decay=1e-4,
            schedule="inverse_sqrt",
            warmup=0.1,
        )

    @override
    def network_settings(self, model: Any = None) -> dict[str, Any]:
        dropout = models.default_hyperparameters("tiny" if model is None else model)["dropout"]
        return {"model": "tiny", "dropout": dropout, "beam": 5, "length_penalty": 1.0}

    @override
    def optimizer_candidates(self, model: Any = None) -> tuple[dict[str, Any], ...]:
        defaults = self.default_settings(model)
        double, half = ({"learning_rate": defaults["learning_rate"] * factor} for factor in (2, 0.5))
        dropout = {"dropout": 0.1 if defaults["dropout"] >= 0.3 else 0.3}
        return {}, double, dropout, half, double | dropout, {"weight_decay": 1e-2}

    def read_inputs(self, path: Path, preprocessing: Mapping[str, Any]) -> Any:
        """The sentences to translate as lines of text, from a file of lines or the source side of a file with both."""
        if text_files.holds_both_sides(path):
            return text_files.read_pairs(path, None, (preprocessing["source"], preprocessing["target"])).source
        return text_files.read_lines(path)

    def read_examples(
        self, path: Path, preprocessing: Mapping[str, Any], classes: Sequence[str], target: str | None
    ) -> Any:
        """Sentences and their translations as `Pairs`, from a file with both sides or with `target`, a second file.

        Encode them with the run's vocabulary: `Sentences.of(pairs, Vocabulary.from_bytes(files))`.
        """
        if target is None and not text_files.holds_both_sides(path):
            raise UserError(f"Expected a .tsv or .parquet file, or --target FILE with the translations of '{path}'.")
        languages = (preprocessing["source"], preprocessing["target"])
        return text_files.read_pairs(path, None if target is None else Path(target), languages)

    @override
    def samples(self, examples: Any, preprocessing: Mapping[str, Any]) -> list[Sample]:
        """Both sides, by language."""
        names = (preprocessing["source"], preprocessing["target"])
        return [
            dict(zip(names, pair, strict=True)) for pair in zip(examples.source_text, examples.target_text, strict=True)
        ]

    def _texts(self, seed: int) -> tuple[dict[str, Pairs], tuple[str, ...]]:
        """(the parts without empty pairs, notes); kept for the next seed."""
        key = self._key(self.fingerprint(), seed if self.seeded else None)
        if key not in _TEXTS:
            _TEXTS.clear()
            texts, notes = {}, []
            for part, pairs in self.read(seed).items():
                texts[part], empty = pairs.without_empty()
                notes += pairs.notes
                if empty:
                    many = counted(empty, f"{part} pair with an empty side is", f"{part} pairs with an empty side are")
                    notes.append(f"{many} left out.")
                if not len(texts[part]):
                    raise UserError(f"The {part} part has no pair with words on both sides.")
            _TEXTS[key] = texts, (*notes, *text_notes(texts))
        return _TEXTS[key]

    def _key(self, *parts: Any) -> str:
        options = {key: value for key, value in self.options.items() if key != "label_noise"}
        return json.dumps([self.name, options, *parts], sort_keys=True)

    def _vocabulary(self, train: Pairs, seed: int, drawn: bool) -> Vocabulary:
        key = self._key(self.fingerprint(), seed if drawn or self.seeded else None)
        if key not in _VOCABULARIES:
            _VOCABULARIES.clear()
            _VOCABULARIES[key] = Vocabulary.train(
                train.source,
                train.target,
                size=self.vocabulary_size or self.default_vocabulary_size,
                kind=self.vocabulary_kind,
                joint=self.joint,
                shrink=self.vocabulary_size is None,
            )
        return _VOCABULARIES[key]

    def _with_noise(
        self, pairs: Pairs, clean: Sentences, vocabulary: Vocabulary, generator: torch.Generator
    ) -> Sentences:
        assert self.noise is not None
        noisy = replace(pairs, target=wrong_translations(pairs.target, *self.noise, generator))
        return replace(Sentences.of(noisy, vocabulary), before_noise=clean.target)

    def _filter(self, train: Sentences) -> tuple[Sentences, list[str]]:
        kept, long, unequal = train.filtered(self.max_length, self.max_ratio)
        reasons = {
            f"a side of more than {self.max_length} pieces": long,
            f"sides that differ more than {self.max_ratio or 0:g}-fold": unequal,
        }
        total = f"of {counted(len(train), 'training pair')}"
        verbs = {count: ("has", "is") if count == 1 else ("have", "are") for count in (long, unequal)}
        notes = [
            f"{count:,} {total} {verbs[count][0]} {reason} and {verbs[count][1]} left out."
            for reason, count in reasons.items()
            if count
        ]
        if not len(kept):
            raise UserError(f"No training pair is left: {' '.join(notes)}")
        return kept, notes

    def _tokenizer_notes(self, tokenizer: str) -> list[str]:
        if tokenizer == DEFAULT_TOKENIZER or self.bleu_tokenizer:
            return []
        return [
            f"BLEU splits the translations with sacreBLEU's tokenizer '{tokenizer}', for the language '"
            f"{self.languages[1]}'; --option bleu_tokenizer=… is another."
        ]

    def _preprocessing(self, vocabulary: Vocabulary, train: Pairs) -> dict[str, Any]:
        """What is needed, beside the vocabulary's files, to read and score new text and to rebuild the network."""
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
            "bleu_tokenizer": self.bleu_tokenizer or side_names.bleu_tokenizer(target, train.target),
            "pad": PAD,
            "unk": UNKNOWN,
            "bos": BEGIN,
            "eos": END,
            "max_length": self.max_length,
        }


class CorpusTask(TranslationTask):
    """A corpus of the table `CORPORA` with its own validation and test parts.

    Args:
        name: its name in the table, the name of the task.
        data, fetch, options: see `TranslationTask`.
    """

    def __init__(self, *, name: str, data: str | None = None, fetch: bool = False, **options: Any) -> None:
        self.name = name
        self.corpus = CORPORA[name]
        self.default_vocabulary_size = self.corpus.vocabulary_size
        self.epochs, self.tokens = self.corpus.epochs, self.corpus.tokens
        data = None if data is None else str(absolute(data))
        super().__init__(data=data, fetch=fetch, **options)

    @property
    @override
    def languages(self) -> tuple[str, str]:
        return self.corpus.source, self.corpus.target

    @override
    def read(self, seed: int) -> dict[str, Pairs]:
        source = self._locate()
        if isinstance(source, HubDataset):
            return corpus_files.read_hub(source, *self.languages)
        parts = source.read(self.languages)
        if source.iwslt and "validation" not in parts:
            parts["train"], parts["validation"] = corpus_files.hold_out(parts["train"])
        return parts

    @override
    def fingerprint(self) -> str:
        source = self._locate()
        if isinstance(source, HubDataset):
            return hf_fingerprint(corpus_files.load_hub(source))
        files = source.files()
        return fingerprint(files, files[0].parent)

    def _locate(self) -> corpus_files.CorpusFiles | HubDataset:
        """The files on disk; without files and with `fetch`, the data set on the hub."""
        folders, hub = self.corpus.folders, self.corpus.hub
        files = corpus_files.locate(self.name, folders, *self.languages, self.data)
        if files is not None:
            return files
        if self.fetch and hub is not None:
            return hub
        raise corpus_files.not_found(self.name, folders[0], *self.languages, self.data, hub is not None)


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
