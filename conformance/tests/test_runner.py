"""The runner and its command line: what fails is told, and told apart."""

import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import savevm_conformance
from savevm_conformance.cases import Case, load_cases
from savevm_conformance.cli import conformance
from savevm_conformance.judge import judge, judge_writing, judge_written, said
from savevm_conformance.known import known_failures
from savevm_conformance.locate import VARIABLE, vectors_directory
from savevm_conformance.protocol import ROLES
from savevm_conformance.results import Target
from savevm_conformance.runner import Limits, introduce, pairs, run_cases
from savevm_conformance.targets import TARGETS, command_of, words
from savevm_conformance.transcripts import difference, digest, opaque, records

REAL = vectors_directory()
# The reference, and what can be wrong with it.
ADAPTER = """
import os, sys, time
from savevm.transcript import rebuild, transcribe
from savevm_conformance.adapters import ours, reference

def failing(data):
    raise ZeroDivisionError("no")

def leaving(data):
    sys.exit()

def dying(data):
    os._exit(7)

def sleeping(data):
    open(PID, "w").write(str(os.getpid()))
    time.sleep(60)

def contrary(data):
    return {**transcribe(data), "page_size": 1}

def forgetful(data):
    return data[:-1]

def idle(case):
    return {"outcome": "written"}

def careless(case):
    open(case["output"], "wb").write(b"QEVM")
    return {"outcome": "written"}

def lossy(case):
    state = json.load(open(case["state"]))
    for device in state["devices"]:
        device["version_id"] += 1
    state["ram"] = [block | {"pages": []} for block in state["ram"]]
    json.dump(state, open(case["output"] + ".json", "w"))
    return reference.writer(case | {"state": case["output"] + ".json"})

import json
ours.run("Small One", "1.2.3", TRANSCRIBE, REBUILD, writer=WRITER)
"""
Adapter = Callable[..., str]


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    """A target made of the reference."""

    def make(
        transcribe: str = "transcribe", rebuild: str = "rebuild", writer: str = "reference.writer"
    ) -> str:
        text = ADAPTER.replace("TRANSCRIBE", transcribe).replace("REBUILD", rebuild)
        text = text.replace("WRITER", writer).replace("PID", repr(str(tmp_path / "pid")))
        path = tmp_path / f"{transcribe}_{rebuild}_{writer.replace('.', '_')}.py"
        path.write_text(text)
        return f"cmd:{sys.executable} {path}"

    return make


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the vectors of one area and two for writers, in use."""
    root = tmp_path / "vectors"
    shutil.copytree(REAL / "header", root / "header")
    for id in ("section/write/no-bytes", "ram/write/one-page"):
        shutil.copytree(REAL / id, root / id)
    monkeypatch.setenv(VARIABLE, str(root))
    return root


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(conformance, ["run", "-j", "1", *arguments])


def lines(result: Result, kind: str = "result") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in result.stdout.splitlines()]
    return [line for line in found if line["kind"] == kind]


def test_passes(few: Path) -> None:
    result = invoke()
    assert result.exit_code == 0, result.output
    assert "PASSED" in result.output
    assert "reference" in result.output
    assert "spec" in result.output


def test_json_lines(few: Path) -> None:
    result = invoke("--json", "spec")
    assert result.exit_code == 0
    streams = [case for case in load_cases(few) if case.verdict != "write"]
    assert [line["case"] for line in lines(result)] == [case.id for case in streams]
    assert {line["outcome"] for line in lines(result)} == {"pass"}
    (target,) = lines(result, "target")
    assert (target["target"], target["name"], target["roles"]) == ("spec", "spec", ["reader"])
    (summary,) = lines(result, "summary")
    assert summary["failures"] == 0
    assert summary["targets"] == {"spec": {"pass": len(streams)}}


@pytest.mark.parametrize("jobs", ["1", "3", "100"])
def test_jobs(few: Path, jobs: str) -> None:
    result = invoke("--json", "-j", jobs)
    assert result.exit_code == 0
    assert [(line["case"], line["target"]) for line in lines(result)] == [
        (case.id, target)
        for case in load_cases(few)
        for target in ("reference", "spec")
        if (target, case.verdict) != ("spec", "write")
    ]


@pytest.mark.parametrize(
    ("id", "key", "value"),
    [
        ("header/reject/empty", "offset", 1),
        ("header/reject/empty", "rule", "header.magic"),
        ("header/reject/empty", "class", "malformed"),
        ("header/reject/empty", "section", "ram"),
        ("header/accept/shortest", "transcript", "0" * 64),
        ("header/accept/shortest", "dialect", "v1"),
        ("header/accept/shortest", "records", ["0 header 3", "9 eof"]),
        ("header/accept/shortest", "ram", {"pc.ram": "0" * 64}),
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
    assert f"{key}: " in result.output
    assert "FAILED: 2 of" in result.output


def test_another_stream_fails(few: Path) -> None:
    """Accepted instead of rejected, and the other way about."""
    for id, other in (("reject/empty", "accept/shortest"), ("accept/shortest", "reject/magic-cut")):
        stream = few / "header" / id / "stream.bin"
        stream.write_bytes((REAL / "header" / other / "stream.bin").read_bytes())
    failed = [line for line in lines(invoke("--json")) if line["outcome"] == "fail"]
    assert [(line["case"], line["detail"]) for line in failed] == [
        ("header/accept/shortest", ["accept expected"]),
        ("header/accept/shortest", ["accept expected"]),
        ("header/reject/empty", ["reject expected"]),
        ("header/reject/empty", ["reject expected"]),
    ]


@pytest.mark.parametrize(
    ("parts", "outcome", "text"),
    [
        ({"transcribe": "failing"}, "error", "ZeroDivisionError: no"),
        ({"transcribe": "leaving"}, "crash", "exit code 0"),
        ({"transcribe": "dying"}, "crash", "exit code 7"),
        ({"transcribe": "sleeping"}, "timeout", "within 1 s"),
        ({"transcribe": "contrary"}, "fail", "transcript: "),
        ({"rebuild": "forgetful"}, "fail", "rebuilt: "),
    ],
)
def test_bad_readers(
    few: Path, adapter: Adapter, parts: dict[str, str], outcome: str, text: str
) -> None:
    arguments = ("--case", "*/accept/*", "--time-limit", "1", adapter(**parts), "reference")
    result = invoke("--json", *arguments)
    assert result.exit_code == 1
    bad, good = lines(result)
    assert bad["outcome"] == outcome
    assert text in " ".join([bad["got"], *bad["detail"]])
    assert bad["expected"] == "accept v3-2008"
    assert good["outcome"] == "pass"


@pytest.mark.parametrize(
    ("writer", "text"),
    [
        ("idle", "nothing was written"),
        ("careless", "what it wrote: reject header.truncated"),
        ("lossy", "no section full rtc 0 1 "),
        ("lossy", "ram: riscv.spike.ram: "),
    ],
)
def test_bad_writers(few: Path, adapter: Adapter, writer: str, text: str) -> None:
    result = invoke("--json", "--role", "writer", adapter(writer=writer))
    assert result.exit_code == 1
    assert {line["outcome"] for line in lines(result)} == {"fail"}
    assert text in " ".join(" ".join([line["got"], *line["detail"]]) for line in lines(result))


def test_a_crash_is_the_case_s_own(few: Path, adapter: Adapter) -> None:
    target = adapter(transcribe="dying")
    result = invoke("--json", "-j", "2", target, "reference")
    assert result.exit_code == 1
    for line in lines(result):
        dies = line["target"] == target and line["role"] == "reader"
        assert line["outcome"] == ("crash" if dies else "pass"), line


def test_memory(few: Path, adapter: Adapter) -> None:
    arguments = ("--case", "header/accept/*", "--memory-limit", "1", adapter())
    (line,) = lines(invoke("--json", *arguments))
    assert (line["outcome"], line["got"]) == ("memory", "it took more than 1 MiB")


def test_what_is_required_and_lacking_is_skipped(few: Path, adapter: Adapter) -> None:
    path = few / "header/reject/empty/case.toml"
    path.write_text(path.read_text().replace("requires = []", 'requires = ["colo", "ram-4"]'))
    result = invoke("--json", "--rule", "header.truncated", "reference", "spec")
    skipped = [line for line in lines(result) if line["outcome"] == "skip"]
    assert [line["got"] for line in skipped] == 2 * ["it does not declare colo"]
    assert result.exit_code == 0
    assert invoke("--case", "header/reject/empty").exit_code == 2


KNOWN = """
[[failure]]
cases = ["header/reject/version-*", "header/accept/*"]
role = "reader"
outcomes = [{outcome}]
why = "It dies."
"""


@pytest.mark.parametrize(
    ("transcribe", "outcome", "arguments", "code"),
    [
        ("dying", '"crash"', ("--case", "*/version-4"), 0),
        ("dying", "", ("--case", "*/version-4"), 0),
        ("dying", '"fail", "timeout"', ("--case", "*/version-4"), 1),
        ("dying", '"crash"', ("--case", "*/magic-wrong"), 1),
        ("transcribe", '"crash"', ("--case", "*/version-4"), 1),
        ("transcribe", '"crash"', ("--case", "*/magic-wrong"), 0),
    ],
)
def test_known_failures(
    few: Path,
    tmp_path: Path,
    adapter: Adapter,
    transcribe: str,
    outcome: str,
    arguments: tuple[str, ...],
    code: int,
) -> None:
    (tmp_path / "known.toml").write_text(KNOWN.format(outcome=outcome))
    known = ("--known", str(tmp_path / "known.toml"))
    result = invoke("--json", *known, *arguments, adapter(transcribe=transcribe))
    assert result.exit_code == code
    (line,) = lines(result)
    assert line["known"] == ("It dies." if (transcribe, code) == ("dying", 0) else None)
    assert line["unexpected"] is ((transcribe, code) == ("transcribe", 1))


@pytest.mark.parametrize(
    "text",
    [
        "[[failure]]\ncases = ['a']",
        "[[failure]]\ncases = 'a'\nwhy = ''",
        "[[failure]]\ncases = [1]\nwhy = ''",
        "[[failure]]\ncases = ['a']\nwhy = ''\noutcome = 'crash'",
        "[[failure]]\ncases = ['a']\nwhy = ''\noutcomes = ['pass']",
        "[[failure]]\ncases = ['a']\nwhy = ''\noutcomes = 'crash'",
        "[[failure]]\ncases = ['a']\nwhy = ''\nrole = 'rider'",
        "failure = 1",
        "failure = [1]",
        "[[failure",
    ],
)
def test_no_known_failures(few: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "known.toml").write_text(text)
    result = invoke("--known", str(tmp_path / "known.toml"), "spec")
    assert result.exit_code == 2
    assert "known.toml: " in result.output


def test_known_failures_of_the_suite_are_of_its_vectors() -> None:
    ids = {case.id: case.roles for case in load_cases(REAL)}
    for path in (Path(savevm_conformance.__file__).parent / "known").glob("*.toml"):
        found = known_failures(Target("", "", ""), [path])
        assert found, path
        for known in found:
            assert known.why
            for glob in known.cases:
                one = type(known)((glob,), "", known.role)
                assert any(one.covers(id, role) for id in ids for role in ids[id]), (path, glob)


@pytest.mark.parametrize(
    "arguments",
    [
        ("nobody",),
        ("spec:more",),
        ("qemu",),
        ("qemu:",),
        ("cmd:",),
        ("cmd:'",),
        ("cmd:/nowhere/adapter",),
        ("cmd:false",),
        ("cmd:echo {}",),
        ("--area", "nowhere"),
        ("--rule", "no.rule"),
        ("--case", "nothing/*"),
        ("--feature", "telepathy"),
        ("--role", "peer", "spec"),
        ("--role", "rider"),
        ("--streams", "/dev/null"),
        ("--known", "/nowhere/known.toml"),
        ("--report", "report.pdf"),
        ("--report", "/nowhere/report.md"),
        ("--time-limit", "0"),
        ("--memory-limit", "0"),
        ("-j", "0"),
    ],
)
def test_nothing_to_run(few: Path, arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.exception is None or isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("text", [None, "", "[]", "{}"])
@pytest.mark.parametrize("name", ["expect.json", "case.toml"])
def test_vectors_that_cannot_be_read(few: Path, name: str, text: str | None) -> None:
    path = few / "header/reject/empty" / name
    if text is None and name == "expect.json":
        path.unlink()
    elif text is not None:
        path.write_text(text)
    else:
        path.write_bytes(b"\xff")
    assert invoke().exit_code == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_ends_it_ends_its_adapters(
    few: Path, tmp_path: Path, adapter: Adapter, number: signal.Signals
) -> None:
    """At once, not when the time of the case is up."""
    command = [sys.executable, "-m", "savevm.cli", "conformance", "run", "-j", "2"]
    command += ["--time-limit", "500", "--case", "header/*", adapter(transcribe="sleeping")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            for _ in range(600):
                time.sleep(0.1)
                if (tmp_path / "pid").is_file() and (text := (tmp_path / "pid").read_text()):
                    break
            process.send_signal(number)
            process.wait(40)
        finally:
            process.kill()
        assert process.returncode == 128 + signal.SIGINT
    with pytest.raises(ProcessLookupError):
        os.kill(int(text), 0)


def test_exitfirst(few: Path, tmp_path: Path, adapter: Adapter) -> None:
    streams = tmp_path / "streams"
    streams.mkdir()
    shutil.copy(REAL / "header/accept/shortest/stream.bin", streams / "good.bin")
    result = invoke("-x", "--json", "--streams", str(streams), adapter("contrary"))
    assert result.exit_code == 1, result.output
    assert [line["outcome"] for line in lines(result)].count("fail") == 1
    assert lines(result)[-1]["outcome"] == "fail"
    assert not lines(result, "stream")
    assert len(lines(invoke("-x", "--json"))) == len(lines(invoke("--json")))
    for name in ("a.bin", "b.bin"):
        (streams / name).write_bytes(b"")
    result = invoke("-x", "--json", "--streams", str(streams), "reference")
    assert result.exit_code == 1, result.output
    assert [line["file"] for line in lines(result, "stream")] == ["a.bin"]


def test_whoever_has_seen_enough_need_not_wait(few: Path, adapter: Adapter) -> None:
    target = introduce(adapter(transcribe="sleeping"))
    good = introduce("reference")
    cases = [case for case in load_cases(few) if case.area == "header"]
    work = [*pairs((good,), cases[:1], None), *pairs((target,), cases, None)]
    results = run_cases(work, {}, jobs=2, limits=Limits(seconds=500))
    assert next(results).outcome == "pass"
    results.close()


def test_streams(few: Path, tmp_path: Path, adapter: Adapter) -> None:
    directory = tmp_path / "streams"
    directory.mkdir()
    good = REAL / "stream/accept/avr-7.2/stream.bin"
    (directory / "plain.bin").write_bytes(good.read_bytes())
    (directory / "packed.bin.xz").write_bytes(lzma.compress(good.read_bytes()))
    (directory / "notes.txt").write_text("not a stream")
    result = invoke("--json", "--streams", str(directory))
    assert result.exit_code == 0, result.output
    streams = lines(result, "stream")
    assert [stream["file"] for stream in streams] == ["packed.bin.xz", "plain.bin"]

    (directory / "plain.bin").write_bytes(good.read_bytes()[:100])
    result = invoke("--streams", str(directory))
    assert result.exit_code == 1
    assert "streams: 1/2 passed" in result.output

    (directory / "plain.bin").unlink()
    for parts, problem in (
        ({"transcribe": "contrary"}, "transcript.page_size: 256 and 1"),
        ({"rebuild": "forgetful"}, "read and written again it is not the same"),
        ({"transcribe": "dying"}, "exit code 7"),
    ):
        result = invoke(
            "--json",
            "--rule",
            "header.magic",
            "--streams",
            str(directory),
            "spec",
            adapter(**parts),
        )
        assert result.exit_code == 1
        (stream,) = lines(result, "stream")
        assert problem in stream["problems"][0]

    (directory / "packed.bin.xz").write_bytes(b"not packed")
    result = invoke("--json", "--streams", str(directory))
    assert result.exit_code == 1
    (stream,) = lines(result, "stream")
    assert stream["outcome"] == "error"


def test_no_streams(few: Path, tmp_path: Path, adapter: Adapter) -> None:
    (tmp_path / "streams").mkdir()
    assert invoke("--streams", str(tmp_path / "streams")).exit_code == 2
    (tmp_path / "streams" / "one.bin").write_bytes(b"QEVM")
    template = Path(savevm_conformance.__file__).parent / "templates" / "adapter.py"
    result = invoke("--streams", str(tmp_path / "streams"), f"cmd:{sys.executable} {template}")
    assert result.exit_code == 2
    assert "none of these targets says transcripts" in result.output


def test_reports_are_of_what_was_run(few: Path, tmp_path: Path, adapter: Adapter) -> None:
    paths = [tmp_path / f"report.{suffix}" for suffix in ("jsonl", "md", "xml", "html")]
    bad = adapter(transcribe="failing")
    result = invoke("--json", *(f"--report={path}" for path in paths), "reference", bad)
    assert result.exit_code == 1
    assert paths[0].read_text() == result.stdout
    for path in paths[1:]:
        assert "ZeroDivisionError" in path.read_text()
    for kind in ("terminal", "markdown", "junit", "html", "jsonl"):
        made = CliRunner().invoke(conformance, ["report", str(paths[0]), "--format", kind])
        assert made.exit_code == 1
        assert "ZeroDivisionError" in made.output
    paths[1].write_text("[]")
    assert CliRunner().invoke(conformance, ["report", str(paths[1])]).exit_code == 2


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


def case(expect: dict[str, Any], **more: Any) -> Case:
    verdict = expect["verdict"]
    return Case(f"a/{verdict}/b", "a", verdict, "", (), Path(), expect, **more)


REJECT = {"verdict": "reject", "rule": "a.b", "offset": 1, "section": None, "class": "truncated"}
WORDLESS = Target("somebody", "", "")
TALKATIVE = Target("somebody", "", "", says=("class", "offset", "section", "rule", "findings"))


def test_only_what_is_said_is_compared() -> None:
    assert judge(case(REJECT), "reader", WORDLESS, {"outcome": "reject"}).outcome == "pass"
    assert judge(case(REJECT), "reader", WORDLESS, {"outcome": "accept"}).outcome == "fail"
    told = judge(case(REJECT), "reader", TALKATIVE, {"outcome": "reject", "offset": 2})
    assert told.outcome == "fail"
    assert told.detail == (
        "it does not say its class, as it said that it would",
        "offset: 2, not 1",
        "it does not say its section, as it said that it would",
        "it does not say its rule, as it said that it would",
    )
    whole = {**REJECT, "outcome": "reject", "detail": "for people"}
    assert judge(case(REJECT), "reader", TALKATIVE, whole).outcome == "pass"


def test_either_is_strict_only_for_our_own() -> None:
    either = case({"verdict": "either", "savevm": REJECT})
    for outcome in ("accept", "reject"):
        assert judge(either, "reader", TALKATIVE, {"outcome": outcome}).outcome == "pass"
    ours = Target("reference", "", "")
    assert judge(either, "reader", ours, {"outcome": "reject"}).outcome == "pass"
    assert judge(either, "reader", ours, {"outcome": "accept"}).outcome == "fail"
    assert judge(either, "reader", TALKATIVE, {"outcome": "crash"}).outcome == "crash"


def test_a_loader_is_held_to_what_binds_loaders() -> None:
    (one,) = (c for c in load_cases(REAL) if c.id == "section/accept/timer-version-3")
    reject, accept = {"outcome": "reject", "rule": one.rules[0]}, {"outcome": "accept"}
    target = Target("somebody", "", "", says=("rule",))
    assert judge(one, "loader", target, reject).outcome == "pass"
    assert judge(one, "loader", target, {**reject, "rule": "a.b"}).outcome == "fail"
    assert judge(one, "loader", target, accept).outcome == "fail"
    assert judge(one, "reader", target, reject).outcome == "fail"
    assert judge(one, "reader", target, accept).outcome == "pass"


@pytest.mark.parametrize(
    ("reply", "outcome", "got"),
    [
        ({"outcome": "skip", "why": "x"}, "skip", "x"),
        ({"outcome": "timeout", "why": "x"}, "timeout", "x"),
        ({"outcome": "error"}, "error", "the outcome 'error', which is none here"),
        ({"outcome": "written"}, "error", "the outcome 'written', which is none here"),
        ({"outcome": "pass"}, "error", "the outcome 'pass', which is none here"),
    ],
)
def test_what_is_no_answer(reply: dict[str, Any], outcome: str, got: str) -> None:
    for judgement in (
        judge(case(REJECT), "reader", TALKATIVE, reply),
        *([] if outcome == "error" and "w" in got else [judge_writing(case(REJECT), reply)]),
    ):
        assert judgement is not None
        assert (judgement.outcome, judgement.got) == (outcome, got)


@pytest.mark.parametrize(
    "findings", [None, 1, "x", [1], [{}], [{"rule": 1}], {"a": 1}, [None] * 999]
)
def test_odd_findings_are_only_wrong(findings: Any) -> None:
    expect = {"verdict": "accept", "dialect": "v1", "findings": []}
    one = case(expect, machine=None)
    object.__setattr__(one, "directory", REAL / "header/accept/shortest")
    judgement = judge(one, "reader", TALKATIVE, {"outcome": "accept", "findings": findings})
    assert judgement.outcome == "fail"
    assert len(judgement.got) <= 300
    assert all(len(line) <= 300 for line in judgement.detail)


def test_writers() -> None:
    write = case({"verdict": "write", "outcome": "written", "ram": {}, "sections": ["a 0 1"]})
    refusal = case({"verdict": "write", "outcome": "reject"})
    assert judge_writing(write, {"outcome": "written"}) is None
    for one, outcome, wanted in (
        (write, "reject", "fail"),
        (refusal, "reject", "pass"),
        (refusal, "written", "fail"),
        (write, "accept", "error"),
    ):
        judgement = judge_writing(one, {"outcome": outcome})
        assert judgement is not None
        assert judgement.outcome == wanted
    reading = {"outcome": "accept", "findings": [], "dialect": "v1", "ram": {}}
    assert judge_written(write, reading, ["a 0 1"]).outcome == "pass"
    assert judge_written(write, reading, ["b 0 1", "a 0 1"]).outcome == "fail"
    machine = replace(write, machine={})
    assert judge_written(machine, reading, ["b 0 1", "a 0 1"]).outcome == "pass"
    assert judge_written(write, reading, ["a 0 2"]).detail == ("no section a 0 1",)
    late = judge_written(write, {"outcome": "timeout", "why": "no answer"}, [])
    assert (late.outcome, late.detail) == ("fail", ("no answer",))


def test_verdicts_in_a_line() -> None:
    assert (
        said({**REJECT, "section": "ram", "detail": "x"})
        == 'reject a.b truncated at 1 in "ram" (x)'
    )
    found = {"rule": "a.b", "offset": 1, "section": None}
    assert (
        said({"outcome": "accept", "dialect": "v1", "findings": [found]})
        == "accept v1 with a.b at 1"
    )


def test_targets() -> None:
    names = {name.partition(":")[0].partition("[")[0] for name in TARGETS} - {"cmd"}
    for name in names:
        rest = ":/opt/it" if name in ("qemu", "analyze-migration") else ""
        assert command_of(name + rest)[:2] == [sys.executable, "-m"]
    assert command_of("qemu:/a b")[-1] == "/a b"
    assert command_of("cmd:'a b' c") == words("'a b' c") == ["a b", "c"]


def test_pairs_are_of_the_roles_that_both_have() -> None:
    cases = load_cases(REAL)
    for role in ROLES:
        found = pairs([Target("a", "", "", roles=("reader", role))], cases, role)
        assert found
        assert {each for _, _, each in found} == {role}
    assert pairs([Target("a", "", "", roles=("reader",))], cases, "loader") == []


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


def test_records() -> None:
    transcript = {
        "records": [
            {"record": "header", "offset": 0, "version": 3},
            {"record": "configuration", "offset": 8, "machine": "a %"},
            {
                "record": "section-full",
                "offset": 9,
                "section_id": 7,
                "idstr": "\xb5",
                "instance_id": 1,
                "version_id": 2,
                "body": {"kind": "opaque", "offset": 20, "length": 4},
                "footer": True,
            },
            {"record": "command", "offset": 29, "command": 3, "payload": "0000"},
            {
                "record": "record",
                "offset": 40,
                "idstr": "",
                "instance_id": 0,
                "version_id": 1,
                "body": {"kind": "opaque", "offset": 50, "length": 2},
            },
        ]
    }
    assert records(transcript) == [
        "0 header 3",
        "8 configuration a%20%25",
        "9 full 7 %B5 1 2",
        "24 footer 7",
        "29 command 3 2",
        "40 record % 0 1 2",
    ]
