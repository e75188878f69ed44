"""The mutation testing of the suite: it changes what it says, and tells the wrong from the right."""

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "mutants.py"
SOURCE = '''
"""A text of 3 words."""
import struct
from savevm_spec.constants import LIMIT_VMDESC, RAM_PAGE, RAM_ZERO

__all__ = ["read"]


class Reader:
    def __init__(self):
        self.pos = None

    def read(self, data: bytes, at=0):
        """1 < 2"""
        assert at >= 0
        if len(data) < 8 and not self.final:
            raise self.error("header.truncated", at, f"{at + 1} bytes")
        self._have(4)
        word = int.from_bytes(data[at:], "big")  # < 3
        self.pos += 8
        self.note(word)
        if (word & RAM_ZERO) > LIMIT_VMDESC:
            self.size = struct.unpack(">IH", data)
        else:
            return None
        return True
'''
# What each operator makes of it: the whole line, or lines, that become another.
CHANGES = {
    ("check", "if len(data) < 8 and not self.final:", "pass"),
    ("comparison", "if len(data) < 8 and", "if len(data) <= 8 and"),
    ("logic", "8 and not self.final", "8 or not self.final"),
    ("logic", "and not self.final", "and self.final"),
    ("constant", "< 8 and", "< 9 and"),
    ("constant", "_have(4)", "_have(5)"),
    ("constant", "pos += 8", "pos += 9"),
    ("constant", "> LIMIT_VMDESC:", "> (LIMIT_VMDESC + 1):"),
    ("truncation", "self._have(4)", "pass"),
    ("endianness", '"big")', '"little")'),
    ("endianness", '">IH"', '"<IH"'),
    ("position", "self.pos += 8", "pass"),
    ("call", "self.note(word)", "pass"),
    ("branch", "if (word & RAM_ZERO) > LIMIT_VMDESC", "if not (word & RAM_ZERO > LIMIT_VMDESC)"),
    ("mask", "word & RAM_ZERO", "word | RAM_ZERO"),
    ("flag", "& RAM_ZERO)", "& RAM_PAGE)"),
    ("comparison", ") > LIMIT", ") >= LIMIT"),
    ("update", 'self.size = struct.unpack(">IH", data)', "pass"),
    ("boolean", "return True", "return False"),
}


@pytest.fixture(scope="module")
def mutants() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOL.parent)
        yield importlib.import_module("mutants")


@pytest.fixture(scope="module")
def variants(mutants: ModuleType) -> ModuleType:
    return sys.modules["variants"]


def test_operators(variants: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text(SOURCE)
    found = variants.candidates(tmp_path, ["some.py"])
    seen = {(m.operator, m.apply(SOURCE.encode()).decode()) for m in found}
    for operator, before, after in CHANGES:
        assert SOURCE.count(before) == 1
        if operator == "check":
            before = SOURCE[SOURCE.index(before) : SOURCE.index("        self._have")].rstrip()
        assert (operator, SOURCE.replace(before, after)) in seen
    assert len(found) == len(CHANGES)
    assert {m.function for m in found} == {"Reader.read"}


def test_selection(variants: ModuleType) -> None:
    found = variants.candidates()
    chosen = variants.select(found, 60, 1)
    assert chosen == variants.select(found, 60, 1)
    assert len(set(chosen)) == 60
    assert {m.operator for m in chosen} == {m.operator for m in found}
    assert {m.file for m in chosen} == set(variants.SOURCES)
    assert chosen != variants.select(found, 60, 2)


def test_every_change_is_python(variants: ModuleType) -> None:
    for mutant in variants.select(variants.candidates(), 90, 3):
        source = (variants.PACKAGE / mutant.file).read_bytes()
        changed = mutant.apply(source)
        assert changed != source
        ast.parse(changed, mutant.file)


def test_every_exclusion_excludes(variants: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = variants.EXCLUDED
    monkeypatch.setattr(variants, "EXCLUDED", ())
    lines = {file: (variants.PACKAGE / file).read_text().split("\n") for file in variants.SOURCES}
    found = [(m, lines[m.file][m.line - 1]) for m in variants.candidates()]
    for rule in rules:
        assert any(rule.covers(mutant, text) for mutant, text in found), rule


@pytest.fixture(scope="module")
def bench(mutants: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return mutants.Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize(
    ("file", "operator", "before", "after"),
    [
        ("stream/reader.py", "check", "if size >= 1 << 31:", "pass"),
        ("stream/ram.py", "comparison", "or address >= self._used", "or address > self._used"),
        ("stream/ram.py", "position", "self._page_address += piece", "pass"),
        ("stream/writer.py", "endianness", '">BI", SECTION_FOOTER', '"<BI", SECTION_FOOTER'),
        ("vmstate.py", "constant", '"timer": (8, True)', '"timer": (9, True)'),
        (
            "ram.py",
            "flag",
            "out.put_integer(at | RAM_PAGE, 8)",
            "out.put_integer(at | RAM_TAG_NORMAL, 8)",
        ),
        (
            "savevm.py",
            "branch",
            "if self.form.dialect.configuration:\n            self._event(Foo",
            "",
        ),
    ],
)
def test_caught(
    mutants: ModuleType, bench: Any, file: str, operator: str, before: str, after: str
) -> None:
    source = (mutants.PACKAGE / file).read_text()
    begin = source.index(before)
    end = begin + len(before)
    (mutant, *_) = [
        m
        for m in mutants.candidates(files=[file])
        if m.operator == operator and begin <= m.start < end
    ]
    assert after in mutant.apply(source.encode()).decode()
    verdict = bench.run(mutant)
    assert verdict.case is not None
    # A page whose second half lies at the address of the first.
    assert verdict.pieces == ("_page_address" in before)
    assert verdict.diff.startswith(f"--- savevm/{file}\n")


def test_what_changes_nothing_survives(mutants: ModuleType, bench: Any) -> None:
    verdict = bench.run(mutants.Mutant("stream/ram.py", 1, "", "", 0, 0, "# Nothing.\n"))
    assert verdict.case is None


def test_command_line() -> None:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        argv = [sys.executable, str(TOOL), "-j1", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)

    done = run("--only", "stream/writer.py:*:endianness", "--count", "2", "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["file"], line["operator"]) for line in lines] == [
        ("stream/writer.py", "endianness")
    ] * 2
    assert all(line["case"] and line["diff"] for line in lines)
    assert run("--only", "nowhere").returncode == 2
