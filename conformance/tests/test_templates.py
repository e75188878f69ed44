"""The reader that was written from ``docs/protocol.rst`` alone: it builds, speaks, and is right."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from savevm_conformance.cases import Case, load_cases
from savevm_conformance.check import check_adapter
from savevm_conformance.locate import vectors_directory
from savevm_conformance.protocol.client import Adapter
from savevm_conformance.runner import introduce, pairs, run_cases

SOURCE = Path(__file__).parents[1] / "savevm_conformance" / "templates" / "adapter.c"
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-O1")
# Whatever is wrong with its memory ends it.
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The adapter in C, with sanitizers where the compiler has them."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler (cc): the adapter in C is not tried")
    program = tmp_path_factory.mktemp("template") / "adapter"
    command = [compiler, *STRICT, str(SOURCE), "-o", str(program)]
    trial = program.with_suffix(".c")
    trial.write_text("int main(void) { return 0; }\n")
    sanitized = [compiler, *SANITIZED, str(trial), "-o", str(program)]
    if subprocess.run(sanitized, capture_output=True, timeout=60).returncode == 0:
        command += SANITIZED
    built = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    return str(program)


@pytest.fixture(scope="module")
def cases() -> tuple[Case, ...]:
    """All vectors."""
    return load_cases(vectors_directory())


def test_it_is_short() -> None:
    code = re.sub(r"/\*.*?\*/", "", SOURCE.read_text("utf-8"), flags=re.S)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 100


def test_it_speaks_the_protocol(adapter: str, cases: tuple[Case, ...]) -> None:
    pytest.importorskip("jsonschema")
    assert check_adapter([adapter], cases) == []


def test_it_is_right_about_all_that_it_says_it_knows(adapter: str, cases: tuple[Case, ...]) -> None:
    target = introduce(f"cmd:{adapter}")
    assert {"class", "offset", "records"} <= set(target.says)
    results = list(run_cases(pairs((target,), cases, None), {}))
    able = {
        case.id
        for case in cases
        if "reader" in case.roles and case.requires <= set(target.features)
    }
    assert len(able) > 200
    assert {result.case for result in results if result.outcome == "pass"} == able
    assert {result.outcome for result in results} == {"pass", "skip"}


def test_nothing_in_a_stream_ends_it(adapter: str, cases: tuple[Case, ...]) -> None:
    # Most of these need features that it does not have.
    process = Adapter([adapter], seconds=20)
    try:
        for case in cases:
            if "reader" in case.roles:
                message = {"id": case.id, "role": "reader", "stream": str(case.stream)}
                assert process.case(message)["outcome"] in ("accept", "reject")
        assert process.bye() == 0
    finally:
        process.kill()
