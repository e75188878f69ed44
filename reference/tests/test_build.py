"""Which build is under test, and that it is the wanted one."""

import os
import subprocess
import sys
from pathlib import Path

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


def setup_py(**environment: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    env = {k: v for k, v in os.environ.items() if k not in ("SAVEVM_MYPYC", "CC")}
    # As the build front end runs it, so that nothing is written into the source tree.
    command = [sys.executable, "-B", "setup.py", "--name"]
    return subprocess.run(
        command, cwd=root, env={**env, **environment}, capture_output=True, text=True, timeout=120
    )


def test_without_a_compiler_one_line_says_that_the_build_is_pure_python() -> None:
    done = setup_py(CC="/bin/false")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "savevm"
    said = [line for line in done.stderr.splitlines() if line.startswith("savevm:")]
    assert len(said) == 1
    assert "pure Python build" in said[0]


def test_compiling_can_be_demanded() -> None:
    done = setup_py(CC="/bin/false", SAVEVM_MYPYC="1")
    assert done.returncode != 0
    assert "SAVEVM_MYPYC=1, but" in done.stderr
