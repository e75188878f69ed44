"""The fuzzer against wrong variants of the reference: it finds them, and nothing in the original."""

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from savevm_conformance.locate import VARIABLE, vectors_directory

TOOLS = Path(__file__).parents[2] / "tools"
# It begins with few streams, and soon changes them.
SEEDS = "ram/accept"
MUCH = ("--count", "120", "-j", "1")
# For each, in seconds; what is to be found is found in the first round.
ENOUGH = 120.0
NOTHING = "# Nothing.\n"


@pytest.fixture(scope="module")
def planted_bugs() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        yield importlib.import_module("planted_bugs")


@pytest.fixture(scope="module")
def fuzzer(planted_bugs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    root = tmp_path_factory.mktemp("fuzzer")
    shutil.copytree(vectors_directory() / SEEDS, root / "vectors" / SEEDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(root / "vectors"))
        yield planted_bugs.Fuzzer(root / "variants", ENOUGH, MUCH)


def mutant(file: str, operator: str, before: str) -> Any:
    """The first mutant that an operator makes in a text."""
    variants = sys.modules["variants"]
    begin = (variants.PACKAGE / file).read_text().index(before)
    found = [m for m in variants.candidates(files=[file]) if m.operator == operator]
    return next(m for m in found if begin <= m.start < begin + len(before))


@pytest.mark.parametrize(
    ("file", "operator", "before", "way"),
    [
        ("stream/ram.py", "check", "if name not in self.blocks:", "reader"),
        # A page whose second half lies at the address of the first.
        ("stream/ram.py", "position", "self._page_address += piece", "pieces"),
        ("ram.py", "flag", "out.put_integer(at | RAM_PAGE, 8)", "writer"),
    ],
)
def test_found(fuzzer: Any, file: str, operator: str, before: str, way: str) -> None:
    verdict = fuzzer.run(mutant(file, operator, before))
    assert verdict.caught
    assert (verdict.way, verdict.seed, verdict.error) == (way, 0, False)
    assert verdict.executions
    assert verdict.signature


def test_what_changes_nothing_is_not_found(planted_bugs: ModuleType, fuzzer: Any) -> None:
    same = sys.modules["variants"].Mutant("stream/ram.py", 1, "", "", 0, 0, NOTHING)
    with fuzzer.planted(same) as package:
        assert not fuzzer.fuzz(package, planted_bugs.WAYS[0], 1, ENOUGH).signature


def test_what_does_not_start_is_told_apart(fuzzer: Any) -> None:
    verdict = fuzzer.run(
        sys.modules["variants"].Mutant("stream/ram.py", 1, "", "", 0, 0, "raise\n")
    )
    assert verdict.caught
    assert verdict.error


def test_the_original_must_be_right(planted_bugs: ModuleType, tmp_path: Path) -> None:
    variants = sys.modules["variants"]
    wrong = mutant("stream/writer.py", "endianness", '">BI", SECTION_FOOTER')
    package = tmp_path / "savevm"
    shutil.copytree(variants.PACKAGE, package)
    (package / wrong.file).write_bytes(wrong.apply((package / wrong.file).read_bytes()))
    with pytest.raises(ValueError, match="the original as reader"):
        planted_bugs.Fuzzer(tmp_path / "fuzzer", ENOUGH, MUCH, package)
