"""Hooks of MkDocs: the repository's pages, as they are, become a site.

README.md, CHANGELOG.md, CONTRIBUTING.md and results/ lie outside docs/. They are added under their own paths, README.md
as index.md, and links between files of the repository are rewritten to where these are on the site. Other files that a
page links to, such as sources and tables, are added too; a link to a folder becomes plain text.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

HOME = Path(__file__).parents[1]
LINK = re.compile(r"(!?)(?<!\\)\[((?:\\.|[^\[\]\\]|\[[^\]]*\])*)\]\(([^()\s:#]+)((?:#[^()\s]*)?)\)")
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def on_config(config: Any) -> Any:
    """List the pages of the methods in the navigation, in the order of their index."""
    names = re.findall(r"\]\((\w+\.md)\)", (HOME / "docs/methods/README.md").read_text(encoding="utf-8"))
    for section in config.nav:
        if "Methods" in section:
            section["Methods"] = ["methods/README.md", {"A page each": [f"methods/{name}" for name in names]}]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages outside of docs/, and the files that any page links to."""
    pages = [HOME / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
    pages += sorted((HOME / "results").rglob("*.md"))
    paths = {*pages}
    for page in [*pages, *(HOME / "docs").rglob("*.md")]:
        for _, _, target, _ in LINK.findall(_without_code(page.read_text(encoding="utf-8"))):
            if (path := _resolved(page, target)).is_file():
                paths.add(path)
    for path in sorted(paths):
        if files.get_file_from_path(_on_site(path)) is None:
            files.append(File.generated(config, _on_site(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Rewrite the links of a page."""
    here = HOME / _in_repository(page.file.src_uri)

    def rewrite(match: re.Match[str]) -> str:
        mark, text, target, anchor = match.groups()
        path = _resolved(here, target)
        if path.is_dir():
            return text
        if not path.is_file():
            return match[0]  # which the strict build reports
        site = posixpath.relpath(_on_site(path), posixpath.dirname(page.file.src_uri) or ".")
        return f"{mark}[{text}]({site}{anchor})"

    parts, end = [], 0
    for code in CODE.finditer(markdown):
        parts += [LINK.sub(rewrite, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, LINK.sub(rewrite, markdown[end:])])


def _without_code(text: str) -> str:
    return CODE.sub("", text)


def _resolved(page: Path, target: str) -> Path:
    return Path(os.path.normpath(page.parent / target))


def _on_site(path: Path) -> str:
    """The path of a file of the repository on the site."""
    name = path.relative_to(HOME).as_posix()
    return "index.md" if name == "README.md" else name.removeprefix("docs/")


def _in_repository(source: str) -> str:
    """The path in the repository of a page of the site."""
    if source == "index.md":
        return "README.md"
    outside = source in ("CHANGELOG.md", "CONTRIBUTING.md") or source.startswith("results/")
    return source if outside else f"docs/{source}"
