"""What a text is cut into: SentencePiece's models, trained on the training side alone."""

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
# Every character is covered, unless there are more than any alphabet has and they would take a quarter of the pieces.
ALPHABET, CHARACTERS_SHARE, COVERED = 1_000, 0.25, 0.9995
# A model is trained on at most so many lines, evenly spaced; more cost memory and change little.
MOST_LINES = 2_000_000
# In bytes; SentencePiece would leave out lines above 4,192.
LONGEST_LINE = 2**20

Side = Literal["source", "target"]


class Vocabulary:
    """Pieces of text and their numbers: pad 0, unknown 1, begin 2, end 3, then pieces.

    Args:
        files: SentencePiece models by file name: one for both sides, or one for each; see `to_bytes`.
        digest: what `digest()` gave when they were written, if they shall be checked.
        notes: sentences that the user should see.

    Text is normalised by the model itself, by SentencePiece's nmt_nfkc. All characters of the training text are
    covered (but the rarest, where there are more than a thousand and they would be over a quarter of the pieces), and
    there is no fallback to bytes: 256 pieces that no sentence holds would share in uniform labels. Another character
    becomes the unknown piece, which decodes to ⁇.

    Raises:
        UserError: a model is damaged, or is another than the digest tells.

    Source: Kudo and Richardson, *SentencePiece*, EMNLP 2018.
    """

    def __init__(self, files: Mapping[str, bytes], *, digest: str | None = None, notes: Sequence[str] = ()) -> None:
        names = JOINT if JOINT[0] in files else SEPARATE
        missing = [name for name in names if name not in files]
        if missing:
            raise UserError(f"Expected the vocabulary to have the file {missing[0]}, but got {_told(files)}.")
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
            size: how many pieces, marks included; of each side where they are not joint.
            kind: "bpe" (Sennrich et al., 2016) or "unigram" (Kudo, 2018).
            joint: one model for both sides.
            shrink: take as many pieces as the text supports where that is fewer, and note it.

        Raises:
            UserError: unknown kind, no text, or a size that the text does not support.
        """
        if kind not in KINDS:
            raise unknown("vocabulary kind", kind, KINDS)
        notes: list[str] = []
        if joint:
            texts = {JOINT[0]: (("both sides"), [source, target])}
        else:
            texts = {SEPARATE[0]: ("the source", [source]), SEPARATE[1]: ("the target", [target])}
        files = {}
        for name, (what, sides) in texts.items():
            files[name], said = _train(_Lines(sides), what, size, kind, shrink)
            notes.extend(said)
        return cls(files, notes=notes)

    @classmethod
    def from_bytes(cls, files: Mapping[str, bytes], digest: str | None = None) -> Vocabulary:
        """The vocabulary that `to_bytes` gave."""
        return cls(files, digest=digest)

    def to_bytes(self) -> dict[str, bytes]:
        """Models by file name: sentencepiece.model, or source.sentencepiece.model and target.sentencepiece.model."""
        return dict(self._files)

    def digest(self) -> str:
        """16 hexadecimal digits that tell one vocabulary from another."""
        found = hashlib.sha256()
        for name, content in sorted(self._files.items()):
            found.update(f"{name}\0{len(content)}\0".encode() + content)
        return found.hexdigest()[:16]

    @property
    def joint(self) -> bool:
        """Whether both sides have the same pieces."""
        return len(self._files) == 1

    @property
    def size(self) -> int:
        """How many pieces the target side has, marks included."""
        return self._target.get_piece_size()

    @property
    def source_size(self) -> int:
        """How many pieces the source side has."""
        return self._source.get_piece_size()

    def encode(self, lines: Sequence[str], side: Side = "source") -> list[list[int]]:
        """Lines to numbers of pieces, without marks; an empty line has none."""
        return self._side(side).encode(list(lines), out_type=int, num_threads=1)

    def decode(self, ids: Sequence[Sequence[int]], side: Side = "target") -> list[str]:
        """Numbers of pieces to lines; marks are left out.

        Raises:
            UserError: a number that is no piece's.
        """
        model, size = self._side(side), self._side(side).get_piece_size()
        wrong = next((number for row in ids for number in row if not 0 <= number < size), None)
        if wrong is not None:
            raise UserError(f"Expected pieces from 0 to {size - 1}, but got {wrong}.")
        return [model.decode([int(number) for number in row]) for row in ids]

    def pieces(self, ids: Sequence[int], side: Side = "target") -> list[str]:
        """The pieces of numbers, as the model writes them: ▁ stands for a space."""
        return [self._side(side).id_to_piece(int(number)) for number in ids]

    def _side(self, side: Side) -> Any:
        if side not in ("source", "target"):
            raise ValueError(f"Expected argument `side` to be source or target, but got {side!r}.")
        return self._source if side == "source" else self._target


class _Lines:
    """Lines of one or two sides, one after the other, at most MOST_LINES of them."""

    def __init__(self, sides: Sequence[Sequence[str]]) -> None:
        self.count = sum(len(side) for side in sides)
        self.step = -(-self.count // MOST_LINES)
        self.sides = sides

    def __iter__(self) -> Iterator[str]:
        for side in self.sides:
            yield from side[:: self.step] if self.step > 1 else side


def _train(lines: _Lines, what: str, size: int, kind: str, shrink: bool) -> tuple[bytes, list[str]]:
    if not any(line.strip() for line in lines):
        raise UserError(f"Expected text to train the vocabulary of {what} on, but got none.")
    characters = len(set().union(*lines))
    covered, notes = 1.0, []
    if characters > max(ALPHABET, CHARACTERS_SHARE * size):
        covered = COVERED
        notes.append(
            f"The text of {what} has {characters:,} different characters: the rarest, {1 - covered:.2%} of the text, "
            "become the unknown piece."
        )
    if lines.step > 1:
        notes.append(f"The vocabulary of {what} is trained on one of every {lines.step} of {lines.count:,} lines.")
    try:
        return _model(lines, size, kind, covered), notes
    except RuntimeError as error:
        largest = _number(r"value <= (\d+)", error)
        least = _number(r"required_chars\. \d+ vs (\d+)", error)
    if least is not None:
        raise UserError(
            f"Expected the vocabulary of {what} to have at least {least} pieces, for its characters alone, but got "
            f"{size}."
        )
    if largest is None:
        raise UserError(f"SentencePiece cannot train a vocabulary of {size} pieces on the text of {what}.")
    if not shrink:
        raise UserError(
            f"Expected a vocabulary of at most {largest} pieces, the most that the text of {what} supports, but got "
            f"{size}."
        )
    notes.append(f"The text of {what} supports a vocabulary of {largest} pieces, so it has these in place of {size}.")
    return _model(lines, largest, kind, covered), notes


def _model(lines: _Lines, size: int, kind: str, covered: float) -> bytes:
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        vocab_size=size,
        model_type=kind,
        character_coverage=covered,
        normalization_rule_name=NORMALISATION,
        pad_id=PAD,
        unk_id=UNKNOWN,
        bos_id=BEGIN,
        eos_id=END,
        unk_surface="⁇",
        max_sentence_length=LONGEST_LINE,
        num_threads=1,
        minloglevel=2,
    )
    return written.getvalue()


def _load(content: bytes, name: str) -> Any:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(content)
    except RuntimeError as error:
        raise UserError(f"The vocabulary '{name}' is no SentencePiece model, or was cut: train again.") from error
    marks = (model.pad_id(), model.unk_id(), model.bos_id(), model.eos_id())
    if marks != (PAD, UNKNOWN, BEGIN, END):
        raise UserError(f"Expected '{name}' to have pad, unk, bos and eos at 0, 1, 2 and 3, but got {marks}.")
    return model


def _number(pattern: str, error: Exception) -> int | None:
    found = re.search(pattern, str(error))
    return int(found.group(1)) if found else None


def _told(files: Mapping[str, bytes]) -> str:
    return ", ".join(files) or "none"
