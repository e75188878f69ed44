"""The page on fuzzing: its files are files, and its commands are commands."""

import re
import shlex
import textwrap
import tomllib
from pathlib import Path

import pytest
import yaml

from savevm_fuzz import strategies
from savevm_fuzz.cli import fuzz
from savevm_fuzz.coverage import __main__
from savevm_fuzz.findings import known_findings

PAGE = (Path(__file__).parents[2] / "docs" / "fuzzing.rst").read_text("utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"code-block:: {language}\n((?:\n|   .*\n)+)", PAGE)
    return [re.sub(r"^:caption:.*\n", "", textwrap.dedent(block).strip() + "\n") for block in found]


def commands(name: str) -> list[str]:
    lines = re.findall(rf"^(?: {{3,}}|.*(?:run: |- )){name} (.*)$", PAGE, re.MULTILINE)
    return [line.replace("${much:---profile ci}", "--profile ci") for line in lines]


@pytest.mark.parametrize("command", commands("savevm fuzz"))
def test_commands(command: str, tmp_path: Path) -> None:
    words = [
        tmp_path / word if word.startswith("findings/") else word for word in shlex.split(command)
    ]
    (tmp_path / "findings" / "NAME").mkdir(parents=True)
    fuzz.make_context("fuzz", [str(word) for word in words])


def test_commands_guided_by_coverage() -> None:
    (command,) = commands("python -m savevm_fuzz.coverage")
    words = shlex.split(command)
    assert __main__._parser().parse_args(words[: words.index("--")]).target == "reader"


def test_jobs() -> None:
    github, gitlab = (yaml.safe_load(block) for block in blocks("yaml"))
    # YAML has "on" for true.
    assert {"pull_request", "schedule"} == set(github[True])
    steps = github["jobs"]["fuzz"]["steps"]
    kept = [step["with"] for step in steps if "cache" in step.get("uses", "")]
    assert kept[0]["key"] == kept[1]["key"]
    assert kept[0]["path"] in gitlab["fuzz"]["cache"]["paths"]
    # Every night goes on with what the last one left.
    assert kept[0]["key"].startswith(kept[0]["restore-keys"])
    assert len(commands("savevm fuzz")) > 8


def test_strategies() -> None:
    named = set(re.findall(r"\w+", " ".join(re.findall(r"``([^`]+)``", PAGE))))
    assert set(strategies.__all__) <= named


def test_known_findings(tmp_path: Path) -> None:
    (block,) = blocks("toml")
    assert tomllib.loads(block)["finding"]
    path = tmp_path / "known.toml"
    path.write_text(block, "utf-8")
    (known,) = known_findings("mine", path, ours=False)
    assert known.covers("mine", "reject ram.page.misaligned, not accept")
    assert not known.covers("other", "reject ram.page.misaligned, not accept")
