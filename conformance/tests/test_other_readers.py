"""Readers of others, as far as they are here: what they get wrong is known, and nothing else is."""

import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from savevm_conformance.adapters.analyze_migration import Script
from savevm_conformance.adapters.reference import transcribe
from savevm_conformance.cases import Case, load_cases
from savevm_conformance.known import known_failures
from savevm_conformance.locate import vectors_directory
from savevm_conformance.protocol.client import Adapter, AdapterError
from savevm_conformance.results import Result
from savevm_conformance.runner import Limits, introduce, pairs, run_cases
from savevm_conformance.targets import command_of
from savevm_conformance.transcripts import ram

SCRIPT = os.environ.get("SAVEVM_ANALYZE_MIGRATION")
VOLATILITY3 = os.environ.get("SAVEVM_VOLATILITY3") or (
    sys.executable if importlib.util.find_spec("volatility3") else None
)
needs_script = pytest.mark.skipif(
    SCRIPT is None, reason="no analyze-migration.py: SAVEVM_ANALYZE_MIGRATION names none"
)
needs_volatility3 = pytest.mark.skipif(
    VOLATILITY3 is None,
    reason="no volatility3: neither installed here nor for a Python in SAVEVM_VOLATILITY3",
)
BRACE = "vmdesc/accept/length-contains-brace"
# One vector has it take all the memory there is.
LIMITS = Limits(memory=512 << 20)


def results(target: str, cases: tuple[Case, ...], *, known: bool) -> dict[str, Result]:
    introduced = introduce(target)
    listed = known_failures(introduced) if known else []
    work = pairs([introduced], cases, "reader")
    ran = run_cases(work, {target: listed}, limits=LIMITS)
    return {result.case: result for result in ran}


@pytest.fixture(scope="module")
def cases() -> Callable[..., tuple[Case, ...]]:
    every = load_cases(vectors_directory())

    def some(*ids: str) -> tuple[Case, ...]:
        return tuple(case for case in every if not ids or case.id in ids)

    return some


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(f"analyze-migration:{SCRIPT}", marks=needs_script, id="analyze-migration"),
        pytest.param(f"volatility3:{VOLATILITY3}", marks=needs_volatility3, id="volatility3"),
    ],
)
def test_what_fails_is_known_and_what_is_known_fails(
    target: str, cases: Callable[..., tuple[Case, ...]]
) -> None:
    ran = results(target, cases(), known=True).values()
    failed = [result for result in ran if result.outcome not in ("pass", "skip")]
    assert [result for result in failed if result.known is None] == []
    assert [result for result in ran if result.unexpected] == []
    assert {"fail"} <= {result.outcome for result in failed}
    assert len([result for result in ran if result.outcome == "pass"]) > len(failed)


@needs_script
def test_a_length_with_a_brace_misleads_the_script(
    cases: Callable[..., tuple[Case, ...]],
) -> None:
    case = "vmdesc/accept/length-ends-with-brace"
    result = results(f"analyze-migration:{SCRIPT}", cases(case), known=False)[case]
    assert result.outcome == "fail"
    assert result.got == "reject (Exception: No Debug Migration device found)"


@needs_script
def test_what_the_script_extracts_is_what_the_stream_has(
    cases: Callable[..., tuple[Case, ...]],
) -> None:
    assert SCRIPT is not None
    script = Script(Path(SCRIPT))
    if script.version.startswith("5."):
        pytest.skip(f"analyze-migration.py of {script.version} extracts nothing with Python 3")
    (case,) = cases("vmdesc/accept/without-configuration")
    reply = script.reader({"stream": str(case.stream)})
    expected = ram(transcribe(case.stream.read_bytes()))
    assert expected["riscv.spike.ram"] != hashlib.sha256().hexdigest()
    assert reply == {"outcome": "accept", "ram": expected}


@needs_volatility3
def test_commands_and_a_length_with_a_brace_stop_volatility3(
    cases: Callable[..., tuple[Case, ...]],
) -> None:
    commands = "stream/accept/spike-11.1"
    ran = results(f"volatility3:{VOLATILITY3}", cases(BRACE, commands), known=False)
    assert {result.outcome for result in ran.values()} == {"fail"}
    assert ran[commands].got == "reject (LayerException: QEMU unknown section encountered: 8)"
    assert ran[BRACE].got.startswith("reject (UnicodeDecodeError")


def test_another_program_is_not_the_script(tmp_path: Path) -> None:
    other = tmp_path / "analyze-migration.py"
    for there in (False, True):
        if there:
            other.write_text("print('{}')\n")
        adapter = Adapter(command_of(f"analyze-migration:{other}"), seconds=20)
        with pytest.raises(AdapterError, match="not analyze" if there else "No such file"):
            adapter.hello()


@pytest.mark.skipif(
    importlib.util.find_spec("volatility3") is not None, reason="volatility3 is beside the suite"
)
def test_a_python_without_volatility3_says_so(tmp_path: Path) -> None:
    # The same Python without what is installed for it; the suite comes with it.
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    wrapper.chmod(0o755)
    with pytest.raises(ValueError, match=r"volatility3: not installed for .*python"):
        introduce(f"volatility3:{wrapper}")


def test_a_script_of_no_release_is_told_by_its_digest(tmp_path: Path) -> None:
    alone = tmp_path / "scripts" / "analyze-migration.py"
    alone.parent.mkdir()
    if SCRIPT is not None:
        shutil.copy(SCRIPT, alone)
    else:
        alone.write_text("QEMU_VM_VMDESCRIPTION = 6\n")
    assert Script(alone).version.startswith("sha256-")
    (tmp_path / "VERSION").write_text("10.0.13\n")
    assert Script(alone).version == "10.0.13"
