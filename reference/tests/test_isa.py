"""The official RISC-V ISA tests, where their source is named by SAVEVM_RISCV_TESTS."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "isa_tests.py"
COMPILER = "riscv64-unknown-elf-gcc"


def test_isa() -> None:
    source = os.environ.get("SAVEVM_RISCV_TESTS")
    missing = "no SAVEVM_RISCV_TESTS" if not source else f"no {COMPILER}"
    if not source or not shutil.which(COMPILER):
        warnings.warn(f"{missing}: the official RISC-V ISA tests were not run", stacklevel=1)
        pytest.skip(f"{missing}: not held against the official RISC-V ISA tests")
    command = [sys.executable, str(TOOL), source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
