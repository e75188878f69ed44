"""The targets of coverage-guided fuzzing: the inputs that are kept, and that mistakes are found."""

import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import savevm
from savevm.channel import Channel
from savevm.machine.layouts import Incoming
from savevm.qcow2 import Image
from savevm.transcript import Transcriber
from savevm.vmdesc import Description
from savevm_fuzz.coverage import __main__, inputs
from savevm_fuzz.coverage.targets import TARGETS, Broken

LARGEST_CORPUS = 300 << 10
# libFuzzer's exit code where an input failed.
FOUND = 77

guided = pytest.mark.skipif(
    find_spec("atheris") is None or savevm.build() != "pure Python",
    reason="coverage guides nothing without the package atheris, nor in compiled modules",
)


@pytest.fixture(autouse=True)
def corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the source, also where an installed package is tested."""
    monkeypatch.setattr(inputs, "CORPUS", Path(__file__).parents[1] / "corpus")


def check(target: str, data: bytes) -> None:
    TARGETS[target].run(data)
    if (compare := TARGETS[target].compare) is not None:
        compare(data)


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_kept(target: str) -> None:
    found = inputs.kept(target)
    assert len(found) > 20
    for name, data in found.items():
        try:
            check(target, data)
        except Exception as error:
            raise AssertionError(f"{name}: {error!r}") from error


def test_what_is_kept_is_small_and_named_by_its_contents() -> None:
    for target in TARGETS:
        with tarfile.open(inputs.archive(target)) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                assert member.name == inputs.name_of(file.read())
                assert member.size <= TARGETS[target].largest
    files = [path for path in inputs.CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LARGEST_CORPUS


@pytest.mark.parametrize("target", TARGETS)
def test_seeds(target: str, tmp_path: Path) -> None:
    assert __main__.main([target, "--seeds", str(tmp_path)]) == 0
    found = sorted(tmp_path.iterdir())
    assert len(found) > 10
    for path in islice(found, 0, None, 1 + len(found) // 40):
        check(target, path.read_bytes())


def moved(take: Callable[..., None]) -> Callable[..., None]:
    """A hart that comes one instruction further on than it left."""

    def take_moved(incoming: Any, version: int, values: Any, hart: Any) -> None:
        take(incoming, version, values, hart)
        hart.pc += 4

    return take_moved


MISTAKES: list[Any] = [
    ("reader", Transcriber, "_count", lambda transcriber, block, kind, count: None),
    ("vmdesc", Description, "device", lambda description, idstr, instance_id, occurrence: None),
    ("envelopes", Image, "delete", lambda image, snapshot: None),
    ("channel", Channel, "_fail", lambda channel, error, end=None: error),
    ("machine", Incoming, "_cpu", moved(Incoming._cpu)),
]


@pytest.mark.parametrize(("target", "owner", "name", "wrong"), MISTAKES)
def test_a_mistake_is_found(
    target: str, owner: type, name: str, wrong: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what is kept already: it reaches what can be wrong."""
    monkeypatch.setattr(owner, name, wrong)
    found = 0
    for data in inputs.kept(target).values():
        try:
            check(target, data)
        except Broken:
            found += 1
    assert found


def test_compiled_modules_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(__main__, "build", lambda: "compiled")
    assert __main__.main(["reader"]) == 2
    assert "SAVEVM_MYPYC=0" in capsys.readouterr().err


def libfuzzer(*words: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    program = ["-m", "savevm_fuzz.coverage"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *program, *words], capture_output=True, text=True, timeout=300
    )


@guided
def test_guided(tmp_path: Path) -> None:
    """New inputs are kept, and what is instrumented is the reference."""
    done = libfuzzer("vmdesc", str(tmp_path / "new"), "--", "-runs=3000", "-seed=1")
    assert done.returncode == 0, done.stderr
    assert "INFO: Instrumenting savevm.stream.reader" in done.stderr
    assert "Instrumenting savevm_spec" not in done.stderr
    assert len(list((tmp_path / "new").iterdir())) > 5


WRONG = """
import sys
from savevm_fuzz.coverage import run
from savevm.vmdesc import Description
Description.device = lambda *_: None
run.fuzz(sys.executable, run.TARGETS["vmdesc"], 1, sys.argv[1:])
"""


@guided
def test_what_is_found_is_left_as_a_file(tmp_path: Path) -> None:
    libfuzzer("vmdesc", "--seeds", str(tmp_path / "seeds"))
    done = libfuzzer(
        "-runs=500", f"-artifact_prefix={tmp_path}/", str(tmp_path / "seeds"), code=WRONG
    )
    assert done.returncode == FOUND, done.stderr
    assert "Broken" in done.stdout
    (found,) = tmp_path.glob("crash-*")
    # It is the mistake that fails.
    assert libfuzzer("vmdesc", str(found)).returncode == 0
