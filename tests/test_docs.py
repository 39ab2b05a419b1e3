"""What the pages say can be typed: code blocks run as written, commands and links exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from launch import run_labo, run_python

HOME = Path(__file__).parents[1]
PAGES = sorted([*HOME.glob("*.md"), *(HOME / "docs").glob("*.md")])
LINKED = sorted([*HOME.glob("*.md"), *(HOME / "docs").rglob("*.md"), *(HOME / "results").rglob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


ADOPT = HOME / "docs" / "adopt.md"
SECTIONS = {
    text.partition("\n")[0]: re.findall(r"```diff\n(.*?)```", text, flags=re.DOTALL)
    for text in ADOPT.read_text().split("\n## ")[1:]
}
WITH_CODE = [page for page in PAGES if page != ADOPT and blocks(page, "python")]
COMMANDS = sorted(
    {
        command.strip()
        for page in PAGES
        for text in (*blocks(page, "sh"), *re.findall(r"`(labo [^`]+)`", page.read_text()))
        for line in text.splitlines()
        for command in line.split("#")[0].split(";")
        if command.strip().startswith("labo ")
    }
)


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_python_blocks_run_as_written(page: Path):
    code = "\n".join(blocks(page, "python"))
    run_python("-W", "error", "-c", code, cwd=HOME)


def side_of(diff: str, dropped: str) -> str:
    """The code before a change (without the lines of "+") or after it (without those of "-")."""
    return "".join(line[1:] or "\n" for line in diff.splitlines(keepends=True) if not line.startswith(dropped))


@pytest.mark.filterwarnings("default")  # those of other libraries
@pytest.mark.parametrize("dropped", ["+", "-"], ids=["before", "after"])
@pytest.mark.parametrize("section", SECTIONS)
def test_changes_run_before_and_after(section: str, dropped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert SECTIONS[section]
    monkeypatch.chdir(tmp_path)
    for diff in SECTIONS[section]:
        names: dict[str, object] = {}
        exec("\n".join(blocks(ADOPT, "python")), names)
        try:
            exec(side_of(diff, dropped), names)
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] == "labo":
                raise
            pytest.skip(f"needs {error.name}")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_and_their_options_exist(command: str):
    _, name, *rest = shlex.split(command)
    if not name.islower():
        return  # labo COMMAND --help
    done = run_labo(name, "--help", COLUMNS="200")
    for option in rest:
        if option.startswith("--"):
            assert re.search(rf"{re.escape(option)}\b", done.stdout), f"{name} has no {option}"


def prose(page: Path) -> list[str]:
    """The sentences of a page, without code and tables; a link counts as its text, a list item as a sentence."""
    text = re.sub(r"```.*?```", "\n\n", page.read_text(), flags=re.DOTALL)
    text = re.sub(r"!?\[((?:\[[^\]]*\]|[^\[\]])*)\]\([^)]*\)", r"\1", text)
    kept = [line for line in text.splitlines() if not line.startswith(("|", "#"))]
    blocks = re.split(r"\n\s*\n|\n(?=- )", "\n".join(kept))
    return [sentence for block in blocks for sentence in re.split(r"(?<=[.?!])\s+", block) if sentence.strip()]


def test_the_readme_is_short_and_so_are_its_sentences():
    assert len((HOME / "README.md").read_text().splitlines()) <= 120
    assert [sentence for sentence in prose(HOME / "README.md") if len(sentence.split()) > 25] == []


@pytest.mark.parametrize("page", sorted((HOME / "docs").glob("*.md")), ids=lambda page: page.name)
def test_a_page_opens_with_what_it_is_good_for(page: Path):
    opening = page.read_text().splitlines()[2]
    assert opening.startswith("After reading this page you can")


def test_the_site_builds_with_every_link_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs")
    site = tmp_path / "site"
    run_python("-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", site, cwd=HOME, NO_MKDOCS_2_WARNING="1")
    pages = {page.relative_to(site).as_posix(): page.read_text() for page in site.rglob("*.html")}
    assert {"index.html", "start.html", "methods/labo.html", "results/demo/report.html", "CHANGELOG.html"} <= set(pages)
    for name, text in pages.items():
        assert not re.findall(r"<(?:link|script|img|iframe)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^\" >]+", text), name
    assert "docs/figures" not in pages["index.html"]
    assert (site / "figures" / "noise-digits.svg").is_file()


def test_there_are_commands_and_code_to_check():
    assert len(COMMANDS) > 8
    assert {"README.md", "start.md", "choosing.md", "write-your-own.md"} <= {page.name for page in WITH_CODE}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(HOME)))
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
