"""Vocabularies: SentencePiece models, trained on the training part alone."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from labo.errors import UserError, unknown

PAD, UNKNOWN, BEGIN, END = 0, 1, 2, 3
KINDS = ("bpe", "unigram")
NORMALISATION = "nmt_nfkc"
JOINT, SEPARATE = ("sentencepiece.model",), ("source.sentencepiece.model", "target.sentencepiece.model")
# All characters are covered, unless there are more than in any alphabet and they would take a quarter of the pieces.
MAX_ALPHABET, MAX_CHARACTER_FRACTION, REDUCED_COVERAGE = 1_000, 0.25, 0.9995
# A model is trained on at most this many evenly spaced lines; more cost memory and change little.
MAX_LINES = 2_000_000
# SentencePiece's own limit of 4,192 bytes would leave out longer lines.
MAX_LINE_BYTES = 2**20

Side = Literal["source", "target"]


class Vocabulary:
    """Subword pieces and their ids: padding 0, unknown 1, begin 2, end 3, then the pieces.

    Args:
        files: SentencePiece models by file name: one for both sides, or one for each; see `to_bytes`.
        digest: the expected `digest()`, if it is to be checked.
        notes: sentences to show to the user.

    The model normalises text itself, by SentencePiece's nmt_nfkc. All characters of the training text are covered
    (except the rarest, where there are more than a thousand and they would take over a quarter of the pieces). There is
    no byte fallback: uniform labels would give mass to 256 pieces that occur in no sentence. Any other character
    becomes the unknown piece, which decodes to ⁇.

    Raises:
        UserError: a model is damaged, or its digest is wrong.

    Source: Kudo and Richardson, *SentencePiece*, EMNLP 2018.
    """

    def __init__(self, files: Mapping[str, bytes], *, digest: str | None = None, notes: Sequence[str] = ()) -> None:
        names = JOINT if JOINT[0] in files else SEPARATE
        missing = [name for name in names if name not in files]
        if missing:
            raise UserError(
                f"Expected the vocabulary to have the file {missing[0]}, but got {', '.join(files) or 'none'}."
            )
        self._files = {name: bytes(files[name]) for name in names}
        if digest is not None and digest != self.digest():
            raise UserError(
                f"Expected the vocabulary ({', '.join(names)}) to have the digest {digest}, but got {self.digest()}: "
                "the file was cut or changed."
            )
        models = [_load(content, name) for name, content in self._files.items()]
        self._source, self._target = models[0], models[-1]
        self.notes = tuple(notes)

    @classmethod
    def train(
        cls,
        source: Sequence[str],
        target: Sequence[str],
        *,
        size: int,
        kind: str = "bpe",
        joint: bool = True,
        shrink: bool = False,
    ) -> Vocabulary:
        """Train on lines of both sides; the same lines give the same model, byte for byte.

        Args:
            source, target: lines.
            size: number of pieces, special tokens included; per side where they are not joint.
            kind: "bpe" (Sennrich et al., 2016) or "unigram" (Kudo, 2018).
            joint: one model for both sides.
            shrink: use the largest size that the text supports, with a note, where `size` is larger.

        Raises:
            UserError: unknown kind, no text, or a size that the text does not support.
        """
        if kind not in KINDS:
            raise unknown("vocabulary kind", kind, KINDS)
        notes: list[str] = []
        if joint:
            texts = {JOINT[0]: ("both sides", [source, target])}
        else:
            texts = {SEPARATE[0]: ("the source", [source]), SEPARATE[1]: ("the target", [target])}
        files = {}
        for name, (what, sides) in texts.items():
            files[name], train_notes = _train(_Lines(sides), what, size, kind, shrink)
            notes.extend(train_notes)
        return cls(files, notes=notes)

    @classmethod
    def from_bytes(cls, files: Mapping[str, bytes], digest: str | None = None) -> Vocabulary:
        """The vocabulary saved by `to_bytes`."""
        return cls(files, digest=digest)

    def to_bytes(self) -> dict[str, bytes]:
        """Models by file name: sentencepiece.model, or source.sentencepiece.model and target.sentencepiece.model."""
        return dict(self._files)

    def digest(self) -> str:
        """16 hexadecimal digits that identify the vocabulary."""
        result = hashlib.sha256()
        for name, content in sorted(self._files.items()):
            result.update(f"{name}\0{len(content)}\0".encode() + content)
        return result.hexdigest()[:16]

    @property
    def joint(self) -> bool:
        """Whether both sides share one model."""
        return len(self._files) == 1

    @property
    def size(self) -> int:
        """The number of pieces of the target side, special tokens included."""
        return self._target.get_piece_size()

    @property
    def source_size(self) -> int:
        """The number of pieces of the source side, special tokens included."""
        return self._source.get_piece_size()

    def encode(self, lines: Sequence[str], side: Side = "source") -> list[list[int]]:
        """Lines to piece ids, without special tokens; an empty line has none."""
        return self._side(side).encode(list(lines), out_type=int, num_threads=1)

    def decode(self, ids: Sequence[Sequence[int]], side: Side = "target") -> list[str]:
        """Piece ids to lines; special tokens are left out.

        Raises:
            UserError: an id is out of range.
        """
        model, size = self._side(side), self._side(side).get_piece_size()
        wrong = next((piece for row in ids for piece in row if not 0 <= piece < size), None)
        if wrong is not None:
            raise UserError(f"Expected pieces from 0 to {size - 1}, but got {wrong}.")
        return [model.decode([int(piece) for piece in row]) for row in ids]

    def pieces(self, ids: Sequence[int], side: Side = "target") -> list[str]:
        """The pieces with these ids, in SentencePiece's notation: ▁ stands for a space."""
        return [self._side(side).id_to_piece(int(piece)) for piece in ids]

    def _side(self, side: Side) -> Any:
        if side not in ("source", "target"):
            raise ValueError(f"Expected argument `side` to be source or target, but got {side!r}.")
        return self._source if side == "source" else self._target


class _Lines:
    """The lines of one or two sides, one after the other, thinned to at most MAX_LINES."""

    def __init__(self, sides: Sequence[Sequence[str]]) -> None:
        self.count = sum(len(side) for side in sides)
        self.step = -(-self.count // MAX_LINES)
        self.sides = sides

    def __iter__(self) -> Iterator[str]:
        for side in self.sides:
            yield from side[:: self.step] if self.step > 1 else side


def _train(lines: _Lines, what: str, size: int, kind: str, shrink: bool) -> tuple[bytes, list[str]]:
    if not any(line.strip() for line in lines):
        raise UserError(f"Expected text to train the vocabulary of {what} on, but got none.")
    characters = len(set().union(*lines))
    coverage, notes = 1.0, []
    if characters > max(MAX_ALPHABET, MAX_CHARACTER_FRACTION * size):
        coverage = REDUCED_COVERAGE
        notes.append(
            f"The text of {what} has {characters:,} different characters: the rarest, {1 - coverage:.2%} of the text, "
            "become the unknown piece."
        )
    if lines.step > 1:
        notes.append(f"The vocabulary of {what} is trained on one of every {lines.step} of {lines.count:,} lines.")
    try:
        return _train_model(lines, size, kind, coverage), notes
    except RuntimeError as error:
        max_size = _parse_int(r"value <= (\d+)", error)
        min_size = _parse_int(r"required_chars\. \d+ vs (\d+)", error)
    if min_size is not None:
        raise UserError(
            f"Expected the vocabulary of {what} to have at least {min_size} pieces, for its characters alone, but got "
            f"{size}."
        )
    if max_size is None:
        raise UserError(f"SentencePiece cannot train a vocabulary of {size} pieces on the text of {what}.")
    if not shrink:
        raise UserError(
            f"Expected a vocabulary of at most {max_size} pieces, the most that the text of {what} supports, but got "
            f"{size}."
        )
    notes.append(f"The text of {what} supports a vocabulary of {max_size} pieces, so it has these in place of {size}.")
    return _train_model(lines, max_size, kind, coverage), notes


def _train_model(lines: _Lines, size: int, kind: str, coverage: float) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=size,
        model_type=kind,
        character_coverage=coverage,
        normalization_rule_name=NORMALISATION,
        pad_id=PAD,
        unk_id=UNKNOWN,
        bos_id=BEGIN,
        eos_id=END,
        unk_surface="⁇",
        max_sentence_length=MAX_LINE_BYTES,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _load(content: bytes, name: str) -> Any:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(content)
    except RuntimeError as error:
        raise UserError(f"The vocabulary '{name}' is no SentencePiece model, or was cut: train again.") from error
    special = (model.pad_id(), model.unk_id(), model.bos_id(), model.eos_id())
    if special != (PAD, UNKNOWN, BEGIN, END):
        raise UserError(f"Expected '{name}' to have pad, unk, bos and eos at 0, 1, 2 and 3, but got {special}.")
    return model


def _parse_int(pattern: str, error: Exception) -> int | None:
    match = re.search(pattern, str(error))
    return int(match.group(1)) if match else None
