"""The documentation is true: commands are understood, links lead somewhere, settings are current."""

import re
import shlex
from pathlib import Path

import pytest
from test_house import FLOORS

from bench.harness import PARTS
from birdtune import cli
from birdtune.config import options
from birdtune.options import settings_page
from birdtune.runtime import configure

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#:]+)\)")
# Flags of single commands, and of other programs.
_OWN = {
    "--help", "--out", "--patches", "--window", "--format", "--model", "--trials", "--list", "--long", "--classes",
    "--published-threshold", "--by-split", "--species-list", "--shard", "--merge", "--truth", "--false-alarms-per-hour",
    "--overlap", "--segment", "--postprocess", "--engine", "--nodes",
    "--to", "--dry-run", "--retry", "--query", "--quality", "--length", "--licence", "--per-class", "--seed",
    "--ontology", "--segments", "--categories",
    "--then", "--smote",
}  # fmt: skip
# Commands of other programs, with flags of their own.
_FOREIGN = re.compile(
    r"(?:^ *|`)(?:[A-Z_]+=\S+ )?(?:aws|cosign|eksctl|gcloud|kubectl|mlflow|ray|sky|sudo|0 3 1) (?:.*\\\n)*[^`\n]*", re.M
)
_OTHERS = {"--accept-licence", "--rm", "--gpus", "--user", "--build-arg", "--kills", "--network",
           "--read-only", "--allow-other", "--prefix"}
# What a line for a shell begins with, perhaps after variables.
_PROGRAM = re.compile(r"(?:[A-Z_]+=\S+ )*(?:\./entrypoint\.sh|docker|find|curl|pip|ffmpeg|(?:\S+/)?python3?) ")


def commands(page: Path) -> list[str]:
    """The lines for a shell that stand on a page: in blocks, as indented lines, and between backticks."""
    text = page.read_text("utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
    blocks = [block for language, block in fenced if language in ("", "sh", "bash")]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    lines = [line for block in blocks for line in re.sub(r" *\\\n *", " ", block).splitlines()]
    lines += re.findall(r"^ {4}(.*)$", prose, re.M) + re.findall(r"`([^`\n]+)`", prose)
    return [line.split(" #")[0].strip() for line in lines if _PROGRAM.match(line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_understood(page: Path) -> None:
    for line in commands(page):
        _, is_ours, arguments = line.partition("./entrypoint.sh")
        name, *rest = shlex.split(arguments.partition(" > ")[0]) or ["run"]
        if name == "bench":
            assert set(rest) <= set(PARTS), line
        elif is_ours and name not in ("test", "extras"):
            cli.parse(name, rest)  # raises UsageError for what it does not know


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text("utf-8")):
        assert (page.parent / link).is_file(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_function_of_the_code_that_a_page_names_is_there(page: Path) -> None:
    there = {f"/{path.relative_to(ROOT).as_posix()}" for part in ("code", "tests", "bench") for path in
             (ROOT / part).rglob("*")}  # fmt: skip
    for name in re.findall(r"`([\w/]+\.py|(?:code|tests|bench)/[\w/.]+)`", page.read_text("utf-8")):
        assert any(path.endswith(f"/{name.rstrip('/')}") for path in there), name
    for name, function in re.findall(r"`([\w/]+\.py)`: `(?:\w+\.)?(\w+)`", page.read_text("utf-8")):
        assert f"def {function}(" in (ROOT / "code/birdtune" / name).read_text("utf-8"), function


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_and_variable_exists(page: Path) -> None:
    text = _FOREIGN.sub("", page.read_text("utf-8"))
    known = {option.flag for option in options()} | _OWN | _OTHERS
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", text)):
        assert flag in known, flag
    for variable in set(re.findall(r"BIRDTUNE_\w+", text)):
        assert variable in {option.variable for option in options()}, variable


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_value_that_is_given_to_a_setting_is_one_of_its_values(page: Path) -> None:
    flags = {option.flag: option.name for option in options()}
    text = page.read_text("utf-8")
    shown = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    shown += re.findall(r"^(?: {4}|\./).*$", text, re.M)
    for line in shown:
        for flag, value in re.findall(r"(--[a-z.-]+)[ =](?!-)([^\s,:]+)", line):
            if flag in flags and not value.isupper():  # which stands for a value
                configure.load({flags[flag]: value}, {})  # raises SettingsError


def test_the_page_of_settings_is_current() -> None:
    page = (ROOT / "docs/settings.md").read_text("utf-8")
    assert page == settings_page(options()), "make it anew: ./entrypoint.sh settings > docs/settings.md"


@pytest.mark.parametrize("name", ["docs/tuning.md"])
def test_figures_with_an_interval_are_those_that_were_measured(name: str) -> None:
    results = (ROOT / "bench/RESULTS.md").read_text("utf-8")
    found = re.findall(r"\d\.\d{3} \(\d\.\d{3} to \d\.\d{3}", " ".join((ROOT / name).read_text("utf-8").split()))
    assert found
    for figure in found:
        assert figure in results, figure


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
    assert reached == {*PAGES, ROOT / "bench/RESULTS.md"}


def test_every_setting_and_command_has_a_line_of_help() -> None:
    for option in options():
        assert len(option.help) >= 8, option.name
    for name, command in cli.COMMANDS.items():
        assert len(command.help) >= 8, name
