"""The task `translation`: the user's own sentence pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from labo.errors import UserError, not_found
from labo.tasks.data_files import fingerprint, hf_fingerprint
from labo.tasks.file_limits import absolute, require_file
from labo.tasks.translation.corpora import HubDataset
from labo.tasks.translation.corpus_files import CorpusFiles, in_folder, load_hub, read_hub
from labo.tasks.translation.task import TranslationTask
from labo.tasks.translation.text_files import Pairs, holds_both_sides

_NEEDED = "Task 'translation' needs --source FILE --target FILE, or --data FILE.tsv|.parquet or a folder."
# Language names where neither an option nor the endings of two files give any.
SIDES = ("source", "target")


class Translation(TranslationTask):
    """The user's own pairs: two files of lines, a file with both sides, a folder, or a data set of the hub.

    Args:
        source, target: files with a sentence a line, plain or gzipped; a .tsv or .parquet source needs no target.
        validation_source, validation_target, test_source, test_target: likewise; drawn by the seed if not given.
        data: in place of source and target: a .tsv or .parquet file; a folder with train, valid and test by language,
            such as train.de and train.en; with `fetch`, the name of a data set on the hub.
        source_language, target_language: endings of the files in a folder, or columns of a .parquet file; by default
            the endings of two files.
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
        languages = {"source_language": source_language, "target_language": target_language}
        _require_strings("the path of a file", source=source, target=target, data=data)
        _require_strings("the path of a file", validation_source=validation_source, validation_target=validation_target)
        _require_strings("the path of a file", test_source=test_source, test_target=test_target)
        _require_strings("the ending of a file or the name of a column", **languages)
        if (data is None) == (source is None):
            raise UserError(_NEEDED if data is None else "Expected either --data or --source, but got both.")
        data, on_hub = (None, False) if data is None else _resolve(data, fetch)
        # Decided by its name, so that a run can be used after its data are gone.
        one_file = data is not None and not on_hub and holds_both_sides(Path(data)) and not Path(data).is_dir()
        self._files = {
            "train": _file_pair("", data if one_file else source, target),
            "validation": _file_pair("validation_", validation_source, validation_target),
            "test": _file_pair("test_", test_source, test_target),
        }
        if data is not None and not one_file and any(self._files.values()):
            raise UserError(f"Expected the parts of '{data}' to be in it, but got files beside it.")
        self._languages = _infer_languages(self._files["train"], source_language, target_language)
        options |= {**languages, **_path_options({**self._files, **({"train": None} if one_file else {})})}
        super().__init__(data=data, fetch=on_hub, **options)

    @property
    @override
    def languages(self) -> tuple[str, str]:
        return self._languages

    @override
    def read(self, seed: int) -> dict[str, Pairs]:
        if self.fetch:
            return read_hub(self._hub_dataset(), *self._languages)
        return self._locate().read(self._languages)

    @override
    def fingerprint(self) -> str:
        if self.fetch:
            return hf_fingerprint(load_hub(self._hub_dataset()))
        files = self._locate().files()
        for file in files:
            require_file(file)
        return fingerprint(files, files[0].parent)

    def _hub_dataset(self) -> HubDataset:
        assert self.data is not None
        return HubDataset(self.data)

    def _locate(self) -> CorpusFiles:
        """The files on disk.

        Raises:
            UserError: `data` does not exist, or its languages or training files are unknown.
        """
        if self.data is not None and not Path(self.data).exists():
            raise not_found(self.data)
        if self._files["train"]:
            return CorpusFiles({part: [pair] for part, pair in self._files.items() if pair})
        assert self.data is not None
        if SIDES[0] in self._languages or SIDES[1] in self._languages:
            raise UserError(
                f"Cannot infer the languages of '{self.data}'; pass --option source_language=… and target_language=…"
            )
        corpus = in_folder(Path(self.data), *self._languages)
        if "train" not in corpus.parts:
            source, target = self._languages
            raise UserError(f"The folder '{self.data}' holds no train.{source} and train.{target}, and no .parquet.")
        return corpus


def _require_strings(what: str, **options: object) -> None:
    for option, value in options.items():
        if value is not None and not (isinstance(value, str) and value):
            raise UserError(f"Expected option `{option}` to be {what}, but got {value!r}.")


def _resolve(data: str, fetch: bool) -> tuple[str, bool]:
    """(the absolute path or the name on the hub, whether it is the latter); a missing path is reported in reading."""
    path = Path(data)
    if not path.exists():
        return data, fetch
    if path.is_file() and not holds_both_sides(path):
        raise UserError(f"Expected --data to be a folder, a .tsv or a .parquet file, but got '{data}'.")
    return str(absolute(path)), False


def _path_options(files: Mapping[str, tuple[Path, Path | None] | None]) -> dict[str, str]:
    """The options that name these files."""
    prefixes = {"train": "", "validation": "validation_", "test": "test_"}
    return {
        f"{prefixes[part]}{side}": str(path)
        for part, pair in files.items()
        for side, path in zip(SIDES, pair or (None, None), strict=True)
        if path is not None
    }


def _file_pair(prefix: str, source: str | None, target: str | None) -> tuple[Path, Path | None] | None:
    """The files of a part; None if none were given."""
    if source is None and target is None:
        return None
    if source is None:
        raise UserError(f"Option `{prefix}target` needs `{prefix}source` beside it.")
    path = absolute(source)
    if holds_both_sides(path):
        if target is not None:
            raise UserError(f"The file '{source}' holds both sides: leave `{prefix}target` out.")
        return path, None
    if target is None:
        raise UserError(
            f"Option `{prefix}source` needs `{prefix}target` beside it, unless it is a .tsv or .parquet file."
        )
    return path, absolute(target)


def _infer_languages(files: tuple[Path, Path | None] | None, source: str | None, target: str | None) -> tuple[str, str]:
    """The languages given, else the endings of two files where they differ, else "source" and "target"."""
    names: tuple[str, str] = SIDES
    if files and files[1]:
        endings = _ending(files[0]), _ending(files[1])
        names = endings if all(endings) and endings[0] != endings[1] else SIDES
    return source or names[0], target or names[1]


def _ending(path: Path) -> str:
    _, dot, ending = path.name.removesuffix(".gz").rpartition(".")
    return ending if dot else ""
