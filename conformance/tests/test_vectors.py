"""The vectors: both implementations on each, and what every vector must keep to."""

import hashlib
import tomllib
from collections.abc import Iterable
from typing import Any

import pytest

from savevm_conformance.adapters import OURS, Adapter, load
from savevm_conformance.locate import vectors_directory
from savevm_conformance.runner import VERDICTS, Case, cases, judge, verdict_of
from savevm_spec.rules import rules

VECTORS = cases(vectors_directory())
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


@pytest.fixture(scope="session", params=OURS)
def target(request: pytest.FixtureRequest) -> tuple[str, Adapter]:
    return request.param, load(request.param)


@each(VECTORS)
def test_verdict(target: tuple[str, Adapter], case: Case) -> None:
    name, adapter = target
    got, _ = verdict_of(adapter, case.stream.read_bytes())
    assert judge(name, case, got) == "pass", got


@each(VECTORS)
def test_files(case: Case) -> None:
    data = case.stream.read_bytes()
    assert len(data) <= LARGEST
    assert hashlib.sha256(data).hexdigest() == entry(case)["sha256"]
    assert {path.name for path in case.directory.iterdir()} == {
        "case.toml",
        "stream.bin",
        "expect.json",
    }


@each(VECTORS)
def test_identity(case: Case) -> None:
    assert case.area in AREAS
    assert case.id == "/".join(case.directory.parts[-3:])
    assert case.expect["verdict"] == case.verdict
    assert entry(case)["source"]
    assert case.description.endswith(".")


@each(VECTORS)
def test_rules_are_known(case: Case) -> None:
    assert case.rules
    assert set(case.rules) <= set(rules())


@each(case for case in VECTORS if case.verdict != "accept")
def test_one_fault_per_reject(case: Case) -> None:
    expect = case.expect.get("savevm", case.expect)
    if expect["verdict"] == "reject":
        assert list(case.rules) == [expect["rule"]]
        assert rules()[expect["rule"]].violation == "reject"
        assert rules()[expect["rule"]].errno == expect["errno"]


@each(case for case in VECTORS if case.verdict == "accept")
def test_findings_are_cited(case: Case) -> None:
    for finding in case.expect["findings"]:
        assert rules()[finding["rule"]].violation == "report"
        assert finding["rule"] in case.rules


@pytest.mark.parametrize("rule", rules())
def test_every_rule_has_a_vector(rule: str) -> None:
    reason = without_vector().get(rule)
    expected = [case.expect.get("savevm", case.expect) for case in VECTORS]
    if rules()[rule].violation == "reject":
        shown = any(expect.get("rule") == rule for expect in expected)
    else:
        shown = any(
            finding["rule"] == rule for expect in expected for finding in expect.get("findings", ())
        )
    assert shown != (reason is not None), reason


def test_rules_without_vector_are_known() -> None:
    assert set(without_vector()) <= set(rules())


def test_enough_vectors() -> None:
    real = [c for c in VECTORS if c.verdict == "accept" and entry(c)["source"].startswith("QEMU ")]
    assert len(real) >= 20
    assert sum(case.verdict == "reject" for case in VECTORS) >= 40
    assert {case.area for case in VECTORS} == AREAS
    assert {case.verdict for case in VECTORS} == set(VERDICTS)


def test_no_two_vectors_are_the_same() -> None:
    first: dict[bytes, str] = {}
    for case in VECTORS:
        assert first.setdefault(case.stream.read_bytes(), case.id) == case.id
