"""``savevm fuzz``: what is wrong with an implementation is found, kept, seen again and made a vector."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from savevm_conformance.cases import load_cases
from savevm_conformance.generate import files, vectors
from savevm_conformance.locate import VARIABLE, vectors_directory
from savevm_conformance.runner import introduce, pairs, run_cases
from savevm_fuzz.cli import fuzz
from savevm_fuzz.seeds import seeds
from savevm_fuzz.targets import inprocess

REAL = vectors_directory()
# The reference, and what can be wrong with it where a footer is.
ADAPTER = """
import json, os, sys, time
from savevm.transcript import rebuild, transcribe
from savevm_conformance.adapters import ours, reference

def wrong(data):
    found = transcribe(data)
    if found["error"] and found["error"]["rule"] == "footer.id":
        return WRONG(found)
    return found

def accepting(found):
    return {**found, "error": None}

def elsewhere(found):
    return {**found, "error": {**found["error"], "offset": 0}}

def raising(found):
    raise ZeroDivisionError("no")

def leaving(found):
    os._exit(7)

def sleeping(found):
    time.sleep(60)

def hoarding(found):
    held = bytearray(b"1") * (600 << 20)
    time.sleep(60)

def writer(case):
    if WRONG is sleeping:
        sleeping(case)
    state = json.load(open(case["state"]))
    for device in state["devices"]:
        device["version_id"] += 1
    json.dump(state, open(case["output"] + ".json", "w"))
    return reference.writer(case | {"state": case["output"] + ".json"})

ours.run("Small One", "1.2.3", wrong, lambda data: data, writer=writer)
"""


@pytest.fixture(autouse=True)
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with the vectors of two areas, in use."""
    root = tmp_path / "vectors"
    for area in ("header", "footer"):
        shutil.copytree(REAL / area, root / area)
    monkeypatch.setenv(VARIABLE, str(root))
    seeds.cache_clear()
    vectors.cache_clear()
    yield root
    seeds.cache_clear()
    vectors.cache_clear()


@pytest.fixture
def all_vectors(tmp_path: Path) -> Callable[[pytest.MonkeyPatch], Path]:
    """Have a copy of all vectors in use."""

    def use(monkeypatch: pytest.MonkeyPatch) -> Path:
        root = tmp_path / "all"
        shutil.copytree(REAL, root)
        monkeypatch.setenv(VARIABLE, str(root))
        return root

    return use


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[[str], str]:
    def make(wrong: str) -> str:
        path = tmp_path / f"{wrong}.py"
        path.write_text(ADAPTER.replace("WRONG", wrong))
        return f"cmd:{sys.executable} {path}"

    return make


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(fuzz, [str(argument) for argument in arguments])


def lines(result: Result, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in result.stdout.splitlines()]
    return [line for line in found if line["kind"] == kind]


def campaign(target: str, *arguments: object, count: int = 60) -> Result:
    return invoke(target, "--count", count, "-j", 1, "--json", *arguments)


@pytest.mark.parametrize("target", ["reference", "spec"])
def test_nothing_found(target: str) -> None:
    result = campaign(target, count=300)
    assert result.exit_code == 0, result.output
    (start,), (summary,) = lines(result, "start"), lines(result, "summary")
    assert (start["name"], start["count"]) == (target, 300)
    assert summary["executions"] == 300
    assert summary["compared"] > (300 / 20 if target == "reference" else 299)
    assert summary["findings"] == []


@pytest.mark.parametrize(
    ("wrong", "kind", "signature"),
    [
        ("accepting", "disagreement", "reject footer.id, not accept"),
        ("elsewhere", "disagreement", "reject footer.id: offset"),
        (
            "raising",
            "error",
            "error: ZeroDivisionError in ours.py:reader raising.py:wrong raising.py:raising",
        ),
        ("leaving", "crash", "crash: the adapter ended with exit code N"),
        ("sleeping", "timeout", "timeout: reject footer.id malformed"),
        ("hoarding", "memory", "memory: reject footer.id malformed"),
    ],
)
def test_found(
    adapter: Callable[[str], str], tmp_path: Path, wrong: str, kind: str, signature: str
) -> None:
    target, directory = adapter(wrong), tmp_path / "findings"
    # What is run first are the seeds, and some have another footer.
    limits = ("--time-limit", 0.4 if kind == "timeout" else 5, "--memory-limit", 300)
    result = campaign(target, "--findings", directory, *limits, count=25)
    assert result.exit_code == 1, result.output
    assert lines(result, "finding"), result.output
    (finding,) = lines(result, "finding")
    assert (finding["outcome"], finding["implementation"]["name"]) == (kind, "Small One")
    assert finding["signature"] == signature
    (kept,) = directory.iterdir()
    assert {path.name for path in kept.iterdir()} == {"stream.bin", "finding.json", "README"}
    if kind in ("disagreement", "error", "crash"):
        # A header, a section of one device, its footer.
        assert len((kept / "stream.bin").read_bytes()) <= 60
    again = invoke("--replay", kept, *limits)
    assert again.exit_code == 1, again.output
    assert finding["signature"] in again.stdout
    assert "predicted: reject footer.id" in again.stdout
    right = invoke("reference", "--replay", kept / "stream.bin")
    assert right.exit_code == 0, right.output
    assert "as predicted" in right.stdout


def test_writer() -> None:
    result = campaign("reference", "--role", "writer", count=30)
    assert result.exit_code == 0, result.output
    assert lines(result, "summary")[0]["executions"] >= 30


def test_wrong_writer(adapter: Callable[[str], str], tmp_path: Path) -> None:
    target, directory = adapter("accepting"), tmp_path / "findings"
    result = campaign(target, "--role", "writer", "--findings", directory)
    assert result.exit_code == 1, result.output
    for kept in directory.iterdir():
        state = json.loads((kept / "state.json").read_text())
        # All that it takes.
        assert (len(state["devices"]), state["ram"]) == (1, [])
        assert invoke("--replay", kept).exit_code == 1
        assert invoke("reference", "--replay", kept).exit_code == 0


def test_writer_that_hangs(adapter: Callable[[str], str]) -> None:
    result = campaign(adapter("sleeping"), "--role", "writer", "--time-limit", 0.4, "-x", count=500)
    assert result.exit_code == 1, result.output
    (finding,) = lines(result, "finding")
    assert finding["outcome"] == "timeout"
    # Making it smaller takes as many as that of a stream does.
    assert lines(result, "summary")[0]["executions"] < 15


def test_minimize(adapter: Callable[[str], str], tmp_path: Path) -> None:
    stream = tmp_path / "found.bin"
    stream.write_bytes((REAL / "footer/reject/id-3/stream.bin").read_bytes() + bytes(99))
    result = invoke(adapter("accepting"), "--minimize", stream)
    assert result.exit_code == 1, result.output
    smaller = (tmp_path / "found.min.bin").read_bytes()
    assert 0 < len(smaller) <= 60
    assert invoke(adapter("accepting"), "--replay", tmp_path / "found.min.bin").exit_code == 1


def test_same_again(adapter: Callable[[str], str], tmp_path: Path) -> None:
    one, other = (
        invoke(
            adapter("elsewhere"), "--count", 150, "-j", 2, "--json", "--findings", tmp_path / name
        )
        for name in ("one", "other")
    )
    summaries = [lines(result, "summary")[0] for result in (one, other)]
    for summary in summaries:
        del summary["seconds"], summary["rate"]
    assert summaries[0] == summaries[1]
    assert summaries[0]["findings"]
    for path in tmp_path.glob("one/*/stream.bin"):
        assert (
            path.read_bytes()
            == (tmp_path / "other" / path.relative_to(tmp_path / "one")).read_bytes()
        )


def test_other_seed_other_streams(tmp_path: Path) -> None:
    for seed in (1, 2):
        campaign("reference", "--seed", seed, "--corpus", tmp_path / str(seed), count=200)
    names = [{path.name for path in (tmp_path / str(seed)).iterdir()} for seed in (1, 2)]
    assert names[0] - names[1]
    assert names[1] - names[0]


def test_corpus_is_shared(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    first = lines(campaign("reference", "--corpus", corpus, count=300), "summary")[0]
    kept = {path.name for path in corpus.iterdir()}
    assert len(kept) == first["corpus"] > 0
    # What the first one has found is nothing new to the second.
    second = lines(campaign("reference", "--corpus", corpus, count=300 + len(kept)), "summary")[0]
    assert second["corpus"] < first["corpus"]
    assert second["paths"] > second["corpus"] + first["corpus"]


def test_known(adapter: Callable[[str], str], tmp_path: Path) -> None:
    known = tmp_path / "known.toml"
    known.write_text(
        '[[finding]]\nsignature = "reject footer.id*"\nwhy = "It looks elsewhere."\n'
        '[[finding]]\nsignature = "crash: *"\nwhy = "Gone."\n'
        '[[finding]]\nsignature = "*"\nwhy = "Another."\nname = "QEMU"\n'
    )
    result = campaign(adapter("accepting"), "--known", known)
    assert result.exit_code == 0, result.output
    (finding,), (summary,) = lines(result, "finding"), lines(result, "summary")
    assert finding["known"] == "It looks elsewhere."
    assert (summary["new"], summary["missing"]) == (0, ["crash: *"])


def test_exitfirst(adapter: Callable[[str], str]) -> None:
    result = campaign(adapter("accepting"), "-x", count=1_000_000)
    assert result.exit_code == 1
    assert len(lines(result, "finding")) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nobody",),
        ("cmd:/nonexistent",),
        ("reference", "--time", "soon"),
        ("reference", "--time", "0"),
        ("reference", "--time", "1s", "--count", "1"),
        ("reference", "--replay", "/nonexistent"),
        ("spec", "--role", "writer", "--count", "1"),
    ],
)
def test_cannot_run(arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2


@pytest.mark.parametrize("name", ["footer/two-at-once", None])
def test_promote(
    adapter: Callable[[str], str],
    all_vectors: Callable[[pytest.MonkeyPatch], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str | None,
) -> None:
    directory = tmp_path / "findings"
    campaign(adapter("elsewhere"), "--findings", directory)
    (kept,) = directory.iterdir()
    root = all_vectors(monkeypatch)
    promoted = invoke("--promote", kept, *(["--slug", name] if name else []))
    assert promoted.exit_code == 0, promoted.output
    problems: list[str] = []
    (id,) = (v.id for v in vectors().values() if v.source == "found by fuzzing Small One 1.2.3")
    assert id.startswith("footer/reject/")
    assert name is None or id == "footer/reject/two-at-once"
    files.generate(root, problem=problems.append)
    assert problems == []
    (case,) = (case for case in load_cases(root) if case.id == id)
    assert case.rules == ("footer.id",)
    assert case.stream.read_bytes() == (kept / "stream.bin").read_bytes()
    targets = [introduce(target) for target in ("reference", "spec", adapter("elsewhere"))]
    results = run_cases(pairs(targets, [case], "reader"), {})
    assert {r.target: r.outcome for r in results} == {
        "reference": "pass",
        "spec": "pass",
        adapter("elsewhere"): "fail",
    }
    again = invoke("--promote", kept, "--slug", "footer/another")
    assert again.exit_code != 0
    assert "is there" in again.output


def test_promote_disagreement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the two do not agree on is no vector."""
    stream = tmp_path / "stream.bin"
    stream.write_bytes(b"QEVM\0\0\0\3\0\0\0")
    monkeypatch.setattr(inprocess, "_verdict", lambda data: {"outcome": "accept"})
    result = invoke("--promote", stream, "--slug", "header/no")
    assert result.exit_code == 2
    assert "disagree" in result.output
    assert not list(vectors_directory().glob("found/*"))


@pytest.mark.parametrize(
    "slug", ["nowhere/x", "header", "header/X", "header/a/b", "header/shortest"]
)
def test_promote_badly_named(tmp_path: Path, slug: str) -> None:
    stream = tmp_path / "stream.bin"
    stream.write_bytes(b"QEVM\0\0\0\3\0\0\0")
    assert invoke("--promote", stream, "--slug", slug).exit_code == 2


def test_promote_accepted(
    all_vectors: Callable[[pytest.MonkeyPatch], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    root = all_vectors(monkeypatch)
    stream = tmp_path / "stream.bin"
    accepted = next((root / "footer/accept").glob("*/stream.bin")).read_bytes()
    stream.write_bytes(accepted + b"\1\2\3")
    result = invoke("--promote", stream, "--slug", "footer/and-more", "--why", "more behind it")
    assert result.exit_code == 0, result.output
    files.generate(root)
    (case,) = (case for case in load_cases(root) if case.id == "footer/accept/and-more")
    assert case.description == "More behind it."
    assert case.expect["findings"]
    results = run_cases(pairs([introduce("reference"), introduce("spec")], [case], "reader"), {})
    assert [r.outcome for r in results] == ["pass", "pass"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ended_by_a_signal(tmp_path: Path, number: int) -> None:
    pid = tmp_path / "pid"
    script = tmp_path / "adapter.py"
    note = f'open({str(pid)!r}, "a").write(str(os.getpid()) + "\\n")\n'
    script.write_text(
        ADAPTER.replace("WRONG", "accepting").replace("\ndef wrong", f"\n{note}def wrong", 1)
    )
    target = f"cmd:{sys.executable} {script}"
    command = "from savevm.cli import run; run()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "fuzz", target, *["--time", "10m", "-j", "2", "--json"]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    # One to introduce itself, and one of each worker.
    while not pid.is_file() or len(pid.read_text().split()) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    children = [
        int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]
    assert len(children) == 2
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert json.loads(out.splitlines()[-1])["kind"] == "summary"
    for each in [*children, *map(int, pid.read_text().split())]:
        assert not Path(f"/proc/{each}").exists() or _is_zombie(each)


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
