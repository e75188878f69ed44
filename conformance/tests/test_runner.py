"""The runner and its command line: what fails is told, and told apart."""

import json
import lzma
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from savevm_conformance.adapters import load
from savevm_conformance.cli import conformance
from savevm_conformance.locate import VARIABLE, vectors_directory
from savevm_conformance.runner import Case, cases, judge
from savevm_conformance.transcripts import difference, digest, opaque

REAL = vectors_directory()
ADAPTERS = textwrap.dedent(
    """
    import os, time
    from savevm_conformance.adapters import reference

    class Failing:
        def transcribe(self, data):
            raise ZeroDivisionError("no")
        def rebuild(self, data):
            return data

    class Forgetful:
        def __init__(self):
            self.good = reference()
        def transcribe(self, data):
            return self.good.transcribe(data)
        def rebuild(self, data):
            return data[:-1]

    class Dying(Failing):
        def transcribe(self, data):
            os._exit(7)

    class Sleeping(Failing):
        def transcribe(self, data):
            time.sleep(60)

    class Leaving(Failing):
        def transcribe(self, data):
            raise SystemExit(0)

    class Contrary(Forgetful):
        def transcribe(self, data):
            transcript = self.good.transcribe(data)
            transcript["page_size"] = 1
            return transcript
        def rebuild(self, data):
            return self.good.rebuild(data)
    """
)


@pytest.fixture
def adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "some_adapters.py").write_text(ADAPTERS)
    monkeypatch.syspath_prepend(tmp_path)
    return "some_adapters"


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the vectors of one area, in use."""
    root = tmp_path / "vectors"
    shutil.copytree(REAL / "header", root / "header")
    monkeypatch.setenv(VARIABLE, str(root))
    return root


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(conformance, ["run", "-j", "1", *arguments])


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_passes(few: Path) -> None:
    result = invoke()
    assert result.exit_code == 0, result.output
    assert "PASSED" in result.output
    assert "reference" in result.output
    assert "spec" in result.output


def test_json_lines(few: Path) -> None:
    result = invoke("--json", "spec")
    assert result.exit_code == 0
    *vectors, verdict = lines(result)
    assert {line["kind"] for line in vectors} == {"vector"}
    assert len(vectors) == verdict["vectors"] == len(cases(few))
    assert verdict["failures"] == 0
    assert verdict["targets"] == ["spec"]


@pytest.mark.parametrize(
    ("id", "key", "value"),
    [
        ("header/reject/empty", "offset", 1),
        ("header/reject/empty", "rule", "header.magic"),
        ("header/reject/empty", "errno", "EINVAL"),
        ("header/reject/empty", "section", "ram"),
        ("header/accept/shortest", "digest", "0" * 64),
        ("header/accept/shortest", "dialect", "v1"),
        ("header/accept/shortest", "findings", [{"rule": "x", "offset": 0, "section": None}]),
    ],
)
def test_wrong_expectation_fails(few: Path, id: str, key: str, value: object) -> None:
    path = few / id / "expect.json"
    expect = json.loads(path.read_text())
    path.write_text(json.dumps({**expect, key: value}))
    result = invoke()
    assert result.exit_code == 1
    assert result.output.count(f"reference {id}") == result.output.count(f"spec {id}") == 1
    assert "expected" in result.output
    assert "FAILED: 2 of" in result.output


@pytest.mark.parametrize(
    ("adapter", "outcome", "text"),
    [
        ("Failing", "error", "ZeroDivisionError: no"),
        ("Leaving", "error", "SystemExit"),
        ("Dying", "crash", "status 7"),
        ("Sleeping", "timeout", "within 1 s"),
        ("Forgetful", "fail", "rebuilt: differs from byte 8"),
    ],
)
def test_bad_adapters(few: Path, adapters: str, adapter: str, outcome: str, text: str) -> None:
    for directory in few.glob("header/reject/*"):
        shutil.rmtree(directory)
    result = invoke("--json", "--time-limit", "1", f"{adapters}:{adapter}", "reference")
    assert result.exit_code == 1
    bad, good, verdict = lines(result)
    assert bad["outcome"] == outcome
    assert text in bad["got"]
    assert good["outcome"] == "pass"
    assert verdict["failures"] == 1


def test_a_crash_is_the_case_s_own(few: Path, adapters: str) -> None:
    result = invoke("--json", "-j", "2", f"{adapters}:Dying", "reference")
    assert result.exit_code == 1
    outcomes = [(line["target"], line["outcome"]) for line in lines(result)[:-1]]
    count = len(cases(few))
    assert outcomes.count((f"{adapters}:Dying", "crash")) == count
    assert outcomes.count(("reference", "pass")) == count


@pytest.mark.parametrize(
    "arguments",
    [
        ("nobody",),
        ("no.such.module:adapter",),
        ("savevm_conformance.adapters:nothing",),
        ("--area", "nowhere"),
        ("--rule", "no.rule"),
        ("--streams", "/dev/null"),
        ("-j", "0"),
    ],
)
def test_nothing_to_run(few: Path, arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2


def test_vectors_that_cannot_be_read(few: Path) -> None:
    (few / "header/reject/empty/expect.json").unlink()
    assert invoke().exit_code == 2


def test_streams(few: Path, tmp_path: Path, adapters: str) -> None:
    directory = tmp_path / "streams"
    directory.mkdir()
    good = REAL / "stream/accept/avr-7.2/stream.bin"
    (directory / "plain.bin").write_bytes(good.read_bytes())
    (directory / "packed.bin.xz").write_bytes(lzma.compress(good.read_bytes()))
    (directory / "notes.txt").write_text("not a stream")
    result = invoke("--json", "--streams", str(directory))
    assert result.exit_code == 0, result.output
    streams = [line for line in lines(result) if line["kind"] == "stream"]
    assert [stream["file"] for stream in streams] == ["packed.bin.xz", "plain.bin"]

    (directory / "plain.bin").write_bytes(good.read_bytes()[:100])
    result = invoke("--streams", str(directory))
    assert result.exit_code == 1
    assert "streams: 1/2 passed" in result.output

    (directory / "plain.bin").unlink()
    result = invoke("--json", "--streams", str(directory), "spec", f"{adapters}:Contrary")
    assert result.exit_code == 1
    (problem,) = (line for line in lines(result) if line["kind"] == "stream")
    assert "transcript.page_size" in problem["problems"][0]


def test_empty_directory_of_streams(few: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert invoke("--streams", str(tmp_path / "empty")).exit_code == 2


def test_list(few: Path) -> None:
    result = CliRunner().invoke(conformance, ["list", "--rule", "header.magic"])
    assert result.exit_code == 0
    assert "header/reject/magic-wrong\theader.magic\t" in result.output
    assert "header/reject/empty" not in result.output


def test_generate_check() -> None:
    result = CliRunner().invoke(conformance, ["generate", "--check"])
    assert result.exit_code == 0, result.output


def test_generate_check_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "vectors"
    shutil.copytree(REAL, root)
    (root / "header/reject/empty/expect.json").unlink()
    monkeypatch.setenv(VARIABLE, str(root))
    result = CliRunner().invoke(conformance, ["generate", "--check"])
    assert result.exit_code == 1
    assert "header/reject/empty/expect.json differs" in result.output
    result = CliRunner().invoke(conformance, ["generate"])
    assert result.exit_code == 0
    assert "1 files written" in result.output


def test_either_is_strict_only_for_our_own() -> None:
    expect = {"verdict": "reject", "rule": "a", "offset": 1, "section": None, "errno": "EIO"}
    case = Case(
        id="a/either/b",
        area="a",
        verdict="either",
        description="",
        rules=(),
        directory=Path(),
        expect={"verdict": "either", "savevm": expect},
    )
    accepted = {"verdict": "accept", "dialect": "v1", "findings": [], "digest": "", "rebuild": True}
    assert judge("reference", case, expect) == "pass"
    assert judge("reference", case, accepted) == "fail"
    assert judge("somebody:else", case, accepted) == "pass"


def test_adapters_are_loaded_by_name() -> None:
    assert load("reference").transcribe(b"")["error"]["rule"] == "header.truncated"
    with pytest.raises(ValueError, match="nobody"):
        load("nobody")


def test_difference() -> None:
    assert difference({"a": [1, 2]}, {"a": [1, 2]}) is None
    assert difference({"a": [1, 2]}, {"a": [1, 3]}) == "transcript.a[1]: 2 and 3"
    assert difference({"a": [1]}, {"a": [1, 2]}) == "transcript.a: 1 elements and 2"
    assert difference({"a": 1}, {}) == "transcript.a: only in the first"
    assert difference({}, {"b": 1}) == "transcript.b: only in the second"
    assert difference({"a": True}, {"a": 1}) == "transcript.a: True and 1"


def test_digest_is_of_the_canonical_text() -> None:
    assert digest({"b": 1, "a": "é"}) == digest({"a": "é", "b": 1})


def test_opaque_bodies_are_counted() -> None:
    body = {"record": "section-full", "idstr": "fdc", "body": {"kind": "opaque"}}
    transcript = {"records": [body, body, {"record": "eof"}]}
    assert opaque(transcript) == {"opaque fdc": 2}
