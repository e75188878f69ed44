"""Which build is under test, and that it is the wanted one."""

import os

import savevm
from savevm.stream import ram, reader


def test_the_wanted_build_is_loaded() -> None:
    wanted = os.environ.get("SAVEVM_BUILD", "any")
    assert wanted in ("any", "compiled", "pure")
    if wanted != "any":
        assert savevm.build() == ("compiled" if wanted == "compiled" else "pure Python")


def test_hot_modules_are_all_built_the_same_way() -> None:
    suffixes = {(module.__file__ or "").rpartition(".")[2] for module in (ram, reader)}
    assert len(suffixes) == 1
    # A compiled method has no Python code behind it.
    compiled = not hasattr(ram.RamBody.read, "__code__")
    assert savevm.build() == ("compiled" if compiled else "pure Python")
