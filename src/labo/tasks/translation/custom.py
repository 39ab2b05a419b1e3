"""The task `translation`: sentences of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labo.errors import UserError, not_here
from labo.tasks.data_files import fingerprint
from labo.tasks.translation import corpus_files as places
from labo.tasks.translation import hub, languages
from labo.tasks.translation import text_files as reading
from labo.tasks.translation.pairs import Pairs
from labo.tasks.translation.task import TranslationTask

_NEEDED = "Task 'translation' needs --source FILE --target FILE, or --data FILE.tsv|.parquet or a folder."
# What a side is called that no option and no file name calls anything.
SIDES = ("source", "target")


class Translation(TranslationTask):
    """Pairs of one's own, from two files of lines, a file with both sides, a folder, or the Hugging Face hub.

    Args:
        source, target: files with a sentence a line, plain or gzipped; a .tsv or .parquet source needs no target.
        validation_source, validation_target, test_source, test_target: likewise; drawn by the seed if not given.
        data: in place of source and target: a .tsv or .parquet file; a folder with train, valid and test by language,
            such as train.de and train.en; with `fetch`, the name of a data set on the hub.
        source_language, target_language: codes, by default the endings of the files; columns of a .parquet file.
        options: see `TranslationTask`.
    """

    name = "translation"

    def __init__(
        self,
        *,
        source: str | None = None,
        target: str | None = None,
        validation_source: str | None = None,
        validation_target: str | None = None,
        test_source: str | None = None,
        test_target: str | None = None,
        data: str | None = None,
        fetch: bool = False,
        source_language: str | None = None,
        target_language: str | None = None,
        **options: Any,
    ) -> None:
        _require_texts(source=source, target=target, validation_source=validation_source, data=data)
        _require_texts(validation_target=validation_target, test_source=test_source, test_target=test_target)
        if (data is None) == (source is None):
            raise UserError(_NEEDED if data is None else "Expected either --data or --source, but got both.")
        data, on_hub = (None, False) if data is None else _named(data, fetch)
        # By its name where it has gone: a finished run still translates.
        one_file = data is not None and not on_hub and reading.holds_both(Path(data)) and not Path(data).is_dir()
        self._given = {
            "train": _files("", data if one_file else source, target),
            "validation": _files("validation_", validation_source, validation_target),
            "test": _files("test_", test_source, test_target),
        }
        if data is not None and not one_file and any(self._given.values()):
            raise UserError(f"Expected the parts of '{data}' to be in it, but got files beside it.")
        named = {"source_language": source_language, "target_language": target_language}
        for option, code in named.items():
            if code is not None:
                languages.checked(code, option)
        self._languages = _languages(self._given["train"], source_language, target_language)
        options |= {**named, **_paths({**self._given, **({"train": None} if one_file else {})})}
        super().__init__(data=data, fetch=on_hub, **options)

    @property
    def languages(self) -> tuple[str, str]:
        """See `TranslationTask.languages`."""
        return self._languages

    def read(self, seed: int) -> dict[str, Pairs]:
        """See `TranslationTask.read`."""
        if self.fetch:
            return hub.read(self._corpus(), *self._languages)
        return texts(self._found().parts, self._languages)

    def fingerprint(self) -> str:
        """See `Task.fingerprint`."""
        if self.fetch:
            return hub.fingerprint(self._corpus())
        files = self._found().files()
        for file in files:
            if not file.is_file():
                raise UserError(f"No such file: '{file}'.")
        return fingerprint(files, files[0].parent)

    def _corpus(self) -> hub.Corpus:
        assert self.data is not None
        return hub.Corpus(self.data)

    def _found(self) -> places.Found:
        """The files on this disk.

        Raises:
            UserError: `data` is not there, or not all of its parts are told.
        """
        if self.data is not None and not Path(self.data).exists():
            raise not_here(self.data)
        if self._given["train"]:
            return places.Found({part: [pair] for part, pair in self._given.items() if pair})
        assert self.data is not None
        if SIDES[0] in self._languages or SIDES[1] in self._languages:
            raise UserError(
                f"Which files in '{self.data}' are which? Name the languages, as in --option source_language=de "
                "--option target_language=en."
            )
        found = places.in_folder(Path(self.data), *self._languages)
        if "train" not in found.parts:
            source, target = self._languages
            raise UserError(f"The folder '{self.data}' holds no train.{source} and train.{target}, and no .parquet.")
        return found


def texts(parts: dict[str, places.Files], codes: tuple[str, str]) -> dict[str, Pairs]:
    """The pairs in the files of each part, one file after another."""
    found: dict[str, Pairs] = {}
    for part, files in parts.items():
        for source, target in files:
            pairs = reading.read_pairs(source, target, codes)
            found[part] = found[part].joined(pairs) if part in found else pairs
    return found


def _require_texts(**paths: object) -> None:
    for option, path in paths.items():
        if path is not None and not isinstance(path, str):
            raise UserError(f"Expected option `{option}` to be the path of a file, but got {path!r}.")


def _named(data: str, fetch: bool) -> tuple[str, bool]:
    """(the path or the name on the hub, whether it is the latter); whether the path is there is seen in reading."""
    path = Path(data)
    if not path.exists():
        return data, fetch
    if path.is_file() and not reading.holds_both(path):
        raise UserError(f"Expected --data to be a folder, a .tsv or a .parquet file, but got '{data}'.")
    return str(path.resolve()), False


def _paths(given: Mapping[str, tuple[Path, Path | None] | None]) -> dict[str, str]:
    """The options that name these files again."""
    prefixes = {"train": "", "validation": "validation_", "test": "test_"}
    return {
        f"{prefixes[part]}{side}": str(path)
        for part, pair in given.items()
        for side, path in zip(SIDES, pair or (None, None), strict=True)
        if path is not None
    }


def _files(part: str, source: str | None, target: str | None) -> tuple[Path, Path | None] | None:
    """Where a part lies; None if it was not named."""
    if source is None and target is None:
        return None
    if source is None:
        raise UserError(f"Option `{part}target` needs `{part}source` beside it.")
    one = Path(source).resolve()
    if reading.holds_both(one):
        if target is not None:
            raise UserError(f"The file '{source}' holds both sides: leave `{part}target` out.")
        return one, None
    if target is None:
        raise UserError(f"Option `{part}source` needs `{part}target` beside it, unless it is a .tsv or .parquet file.")
    return one, Path(target).resolve()


def _languages(files: tuple[Path, Path | None] | None, source: str | None, target: str | None) -> tuple[str, str]:
    """Those given, else the endings of two files if they are codes, else "source" and "target"."""
    ends = [_ending(path) if path is not None and files and files[1] else None for path in files or (None, None)]
    return source or ends[0] or SIDES[0], target or ends[1] or SIDES[1]


def _ending(path: Path) -> str | None:
    return languages.of_ending(path.name.removesuffix(".gz").rpartition(".")[2])
