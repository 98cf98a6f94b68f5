"""The documentation is true: commands are understood, links lead somewhere, settings are current."""

import re
import shlex
from pathlib import Path

import pytest
from test_house import FLOORS

from birdtune import cli
from birdtune.config import options, settings_page

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#:]+)\)")
# Flags of single commands, and of other programs.
_OWN = {"--help", "--out", "--patches", "--window", "--format", "--model", "--trials", "--list", "--long"}
_OTHERS = {"--accept-licence", "--rm", "--gpus", "--user", "--build-arg", "--kills", "--network"}


def commands(page: Path) -> list[list[str]]:
    """The arguments of every command of birdtune's that stands in a block of code on a page."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    lines = [line.split(" #")[0] for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("./entrypoint.sh")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_understood(page: Path) -> None:
    for command in commands(page):
        name, *arguments = command or ["run"]
        if name not in ("test", "extras") and "--help" not in arguments:
            cli._parse(name, cli.COMMANDS[name], arguments)  # raises UsageError for what it does not know


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text("utf-8")):
        assert (page.parent / link).is_file(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_and_variable_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    known = {option.flag for option in options()} | _OWN | _OTHERS
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", text)):
        assert flag in known, flag
    for variable in set(re.findall(r"BIRDTUNE_\w+", text)):
        assert variable in {option.variable for option in options()}, variable


def test_the_page_of_settings_is_current() -> None:
    page = (ROOT / "docs/settings.md").read_text("utf-8")
    assert page == settings_page(), "make it anew: ./entrypoint.sh settings > docs/settings.md"


def test_the_readme_is_short_and_lists_the_packages() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.split()) <= 900
    table = text.split("## The code")[1].split("\n## ")[0]
    rows = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert [row.rstrip("/").removesuffix(".py") for row in rows[1:]] == [name for name in FLOORS if name != "__main__"]


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set[Path](), {ROOT / "README.md"}
    while waiting:
        reached |= waiting
        links = [(page, link) for page in waiting for link in LINK.findall(page.read_text("utf-8"))]
        waiting = {(page.parent / link).resolve() for page, link in links if link.endswith(".md")} - reached
    assert reached == set(PAGES)


def test_every_setting_and_command_has_a_line_of_help() -> None:
    for option in options():
        assert len(option.help) >= 8, option.name
    for name, command in cli.COMMANDS.items():
        assert len(command.help) >= 8, name
