"""The vectors: both implementations on each, and what every vector must keep to."""

import hashlib
import json
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from savevm_conformance.adapters import reference, spec
from savevm_conformance.cases import VERDICTS, Case, load_cases
from savevm_conformance.locate import vectors_directory
from savevm_conformance.protocol import CLASSES
from savevm_conformance.transcripts import digest, ram, records, sections
from savevm_spec.rules import rules

VECTORS = load_cases(vectors_directory())
STREAMS = [case for case in VECTORS if case.verdict != "write"]
WRITES = [case for case in VECTORS if case.verdict == "write"]
AREAS = {
    "header",
    "configuration",
    "section",
    "footer",
    "command",
    "vmstate",
    "vmdesc",
    "ram",
    "block",
    "htab",
    "storage-attributes",
    "stream",
    "legacy",
    "limit",
}
LARGEST = 64 << 10
# Where the size is the point.
LARGER = {"block/accept/contents"}


def each(vectors: Iterable[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in vectors])


def entry(case: Case) -> dict[str, Any]:
    return tomllib.loads((case.directory / "case.toml").read_text("utf-8"))


def without_vector() -> dict[str, str]:
    """Why a rule has no vector, by rule."""
    text = (vectors_directory() / "without-vector.toml").read_text("utf-8")
    groups = tomllib.loads(text)["without"]
    reasons = {rule: group["why"] for group in groups for rule in group["rules"]}
    assert len(reasons) == sum(len(group["rules"]) for group in groups)
    return reasons


@cache
def validator(name: str) -> Draft202012Validator:
    schema = json.loads((vectors_directory() / f"{name}.schema.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def read(implementation: ModuleType, data: bytes) -> dict[str, Any]:
    """What an implementation makes of a stream, in the words of an expectation."""
    transcript = implementation.transcribe(data)
    if (error := transcript["error"]) is not None:
        told = {key: error[key] for key in ("rule", "offset", "section")}
        return {"verdict": "reject", "class": CLASSES[error["errno"]], **told}
    assert implementation.rebuild(data) == data
    return {
        "verdict": "accept",
        "dialect": transcript["dialect"],
        "findings": transcript["findings"],
        "records": records(transcript),
        "ram": ram(transcript),
        "transcript": digest(transcript),
    }


@pytest.mark.parametrize("implementation", [reference, spec], ids=["reference", "spec"])
@each(STREAMS)
def test_verdict(implementation: ModuleType, case: Case) -> None:
    expect = case.expect.get("savevm", case.expect)
    got = read(implementation, case.stream.read_bytes())
    # The longest lists of records are left out.
    assert {key: got.get(key) for key in {*expect, *got} - {"records"} | expect.keys()} == expect


@each(WRITES)
def test_written(tmp_path: Path, case: Case) -> None:
    """The reference writes it, and the grammar reads it."""
    output = tmp_path / "stream.bin"
    reply = reference.writer({"state": str(case.state), "output": str(output)})
    assert reply["outcome"] == case.expect["outcome"]
    if reply["outcome"] == "written":
        transcript = spec.transcribe(output.read_bytes())
        assert transcript["error"] is None
        assert transcript["findings"] == []
        assert transcript["dialect"] == case.expect.get("dialect", transcript["dialect"])
        assert ram(transcript) == case.expect["ram"]
        assert sections(transcript) == case.expect["sections"]


@each(VECTORS)
def test_files(case: Case) -> None:
    file = case.state if case.verdict == "write" else case.stream
    data = file.read_bytes()
    # A state has its bytes in hexadecimal, and white space.
    assert len(data) <= LARGEST * (4 if case.verdict == "write" else 1) or case.id in LARGER
    assert hashlib.sha256(data).hexdigest() == entry(case)["sha256"]
    names = {path.name for path in case.directory.iterdir()}
    assert names == {"case.toml", file.name, "expect.json"}


@each(VECTORS)
def test_schemas(case: Case) -> None:
    validator("case").validate(entry(case))
    validator("expect").validate(case.expect)
    if case.verdict == "write":
        validator("state").validate(json.loads(case.state.read_text("utf-8")))


@pytest.mark.parametrize(
    ("name", "id", "change"),
    [
        ("case", "header/accept/shortest", {"requires": ["ram-5"]}),
        ("case", "header/accept/shortest", {"rules": []}),
        ("case", "header/accept/shortest", {"id": "header/shortest"}),
        ("case", "header/accept/shortest", {"author": "nobody"}),
        ("case", "header/accept/shortest", {"machine": {"arch": "riscv64"}}),
        ("case", "header/accept/shortest", {"loader": {"verdict": "accepted"}}),
        ("expect", "header/accept/shortest", {"transcript": "none"}),
        ("expect", "header/accept/shortest", {"class": "malformed"}),
        ("expect", "header/accept/shortest", {"records": ["0 head 3"]}),
        ("expect", "header/reject/empty", {"class": "EIO"}),
        ("expect", "header/reject/empty", {"offset": -1}),
        ("expect", "section/write/no-bytes", {"sections": ["rtc"]}),
        ("state", "section/write/no-bytes", {"page_size": 1000}),
        ("state", "section/write/no-bytes", {"devices": [{"idstr": "rtc"}]}),
        ("state", "ram/write/zero", {"ram": [{"name": "ram", "pages": []}]}),
    ],
)
def test_schemas_refuse(name: str, id: str, change: dict[str, Any]) -> None:
    (case,) = (case for case in VECTORS if case.id == id)
    whole = {
        "case": lambda: entry(case),
        "expect": lambda: case.expect,
        "state": lambda: json.loads(case.state.read_text("utf-8")),
    }[name]()
    assert validator(name).is_valid(whole)
    assert not validator(name).is_valid(whole | change)


@each(VECTORS)
def test_identity(case: Case) -> None:
    assert case.area in AREAS
    assert case.id == "/".join(case.directory.parts[-3:])
    assert case.expect["verdict"] == case.verdict
    assert case.description.endswith(".")


@each(VECTORS)
def test_rules_are_known(case: Case) -> None:
    assert set(case.rules) <= set(rules())


@each(case for case in STREAMS if case.verdict != "accept")
def test_one_fault_per_reject(case: Case) -> None:
    expect = case.expect.get("savevm", case.expect)
    if expect["verdict"] == "reject":
        assert list(case.rules) == [expect["rule"]]
        rule = rules()[expect["rule"]]
        assert rule.violation == "reject"
        assert rule.errno is not None
        assert CLASSES[rule.errno] == expect["class"]


@each(case for case in VECTORS if case.verdict == "accept")
def test_findings_are_cited(case: Case) -> None:
    for finding in case.expect["findings"]:
        assert rules()[finding["rule"]].violation == "report"
        assert finding["rule"] in case.rules


@each(case for case in VECTORS if case.loader is not None)
def test_loaders_differ_from_readers(case: Case) -> None:
    assert case.loader is not None
    # What a reader rejects, too, a loader may reject for a reason of its own.
    assert case.loader["verdict"] != case.verdict or case.verdict == "reject"
    if "rule" in case.loader:
        assert rules()[case.loader["rule"]].violation == "reject"
        assert case.loader["rule"] in case.rules


@each(case for case in STREAMS if entry(case)["source"].endswith(" with one change"))
def test_what_was_changed_needs_what_it_needed(case: Case) -> None:
    source = entry(case)["source"].removesuffix(" with one change")
    (base,) = (other for other in STREAMS if other.id == source)
    if case.expect["verdict"] != "reject":
        return
    limited = {"limits"} if case.rules[0].startswith("limit.") else set()
    assert case.requires == base.requires | limited
    assert case.machine == base.machine


def shown_by(case: Case) -> Iterable[str]:
    """The rules that somebody breaks who does not do as a vector wants."""
    expect = case.expect.get("savevm", case.expect)
    yield from (finding["rule"] for finding in expect.get("findings", ()))
    for verdict in (expect, case.loader or {}):
        yield from [verdict["rule"]] if "rule" in verdict else []


@pytest.mark.parametrize("rule", rules())
def test_every_rule_has_a_vector(rule: str) -> None:
    reason = without_vector().get(rule)
    shown = [case.id for case in STREAMS if rule in shown_by(case)]
    assert bool(shown) != (reason is not None), (reason, shown)


def test_rules_without_vector_are_known() -> None:
    assert set(without_vector()) <= set(rules())


def test_enough_vectors() -> None:
    real = [c for c in VECTORS if c.verdict == "accept" and entry(c)["source"].startswith("QEMU ")]
    assert len(real) >= 20
    assert sum(case.verdict == "reject" for case in VECTORS) >= 40
    assert len(VECTORS) >= 400
    assert len(WRITES) >= 20
    assert {case.area for case in VECTORS} == AREAS
    assert {case.verdict for case in VECTORS} == set(VERDICTS)
    assert {role for case in VECTORS for role in case.roles} == {
        "reader",
        "loader",
        "writer",
        "peer",
    }


def test_no_two_vectors_are_the_same() -> None:
    first: dict[bytes, str] = {}
    for case in VECTORS:
        data = (case.state if case.verdict == "write" else case.stream).read_bytes()
        assert first.setdefault(data, case.id) == case.id
