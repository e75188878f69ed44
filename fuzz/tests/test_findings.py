"""Findings: told apart, made small, kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from savevm_conformance.locate import vectors_directory
from savevm_fuzz.findings import (
    Finding,
    Known,
    Look,
    known_findings,
    look,
    minimize,
    read_finding,
)
from savevm_fuzz.mutations import Mutation
from savevm_fuzz.oracle import predict

REAL = vectors_directory()
PREDICTED = {"outcome": "reject", "rule": "footer.id", "class": "malformed", "offset": 7}
TRACEBACK = """Traceback (most recent call last):
  File "/opt/{0}/reader.py", line {1}, in feed
    x
  File "/opt/{0}/words.py", line {2}, in word
    y
ValueError: {3}"""
ABORTED = "the adapter ended with signal SIGABRT: qemu: ../migration/ram.c:{}: load: Assertion `x' failed."


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TRACEBACK.format("a", 1, 2, "0x17"), TRACEBACK.format("b", 3, 4, "bad")),
        (ABORTED.format(12), ABORTED.format(4711)),
        ("the adapter ended with exit code 7: at 12", "the adapter ended with exit code 9: at 4"),
    ],
)
def test_same_signature(one: str, other: str) -> None:
    signatures = {
        look(PREDICTED, {"outcome": "crash", "why": why}, ()).signature for why in (one, other)
    }
    assert len(signatures) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            TRACEBACK.format("a", 1, 2, "x"),
            TRACEBACK.format("a", 1, 2, "x").replace("word", "page"),
        ),
        (
            TRACEBACK.format("a", 1, 2, "x"),
            TRACEBACK.format("a", 1, 2, "x").replace("Value", "Type"),
        ),
        (ABORTED.format(12), ABORTED.format(12).replace("load", "save")),
    ],
)
def test_another_signature(one: str, other: str) -> None:
    signatures = {
        look(PREDICTED, {"outcome": "crash", "why": why}, ()).signature for why in (one, other)
    }
    assert len(signatures) == 2


def test_only_what_is_said_counts() -> None:
    got = {**PREDICTED, "offset": 8}
    assert look(PREDICTED, got, ("rule",)).kind is None
    assert look(PREDICTED, got, ("rule", "offset")).signature == "reject footer.id: offset"
    assert look(None, {"outcome": "accept"}, ("rule",)).kind is None
    assert look(PREDICTED, {"outcome": "skip"}, ("rule",)).kind is None
    assert look(PREDICTED, {"outcome": "perhaps"}, ("rule",)).kind == "error"


@pytest.mark.parametrize(
    ("id", "longest"),
    [
        ("footer/reject/id-3", 38),
        ("ram/reject/page-outside-4000", 120),
        ("header/reject/version-4", 8),
    ],
)
def test_minimize(id: str, longest: int) -> None:
    data = (REAL / id / "stream.bin").read_bytes()
    rule = predict(data)["rule"]
    asked = 0

    def still(candidate: bytes) -> bool:
        nonlocal asked
        asked += 1
        return bool(predict(candidate).get("rule") == rule)

    smaller = minimize(data, still, 500)
    assert predict(smaller)["rule"] == rule
    assert len(smaller) <= longest
    assert asked <= 500


@pytest.mark.parametrize("most", [0, 1, 7])
def test_minimize_ends(most: int) -> None:
    asked: list[bytes] = []

    def never(data: bytes) -> bool:
        asked.append(data)
        return False

    assert minimize(b"abc" * 9, never, most) == b"abc" * 9
    assert len(asked) <= most


def finding(data: bytes = b"QEVM") -> Finding:
    mutation = Mutation("1 byte became 00", 3, "header.magic", frozenset({"header.magic"}))
    seen = Look(PREDICTED, {"outcome": "accept"}, "disagreement", "reject ../x, not accept", ("a",))
    return Finding("reference", "reference", "1", seen, data, "header/accept/shortest", (mutation,))


def test_save(tmp_path: Path) -> None:
    directory = finding().save(tmp_path)
    assert directory.parent == tmp_path
    data, told = read_finding(directory)
    assert data == b"QEVM"
    assert told["signature"] == "reject ../x, not accept"
    assert told["mutations"][0]["rules"] == ["header.magic"]
    assert told["seed"] == "header/accept/shortest"
    assert read_finding(directory / "stream.bin") == (data, told)
    assert "--replay" in (directory / "README").read_text()


def test_the_smallest_stays(tmp_path: Path) -> None:
    for data in (b"QEVM1", b"QE", b"QEVM"):
        directory = finding(data).save(tmp_path)
    assert list(tmp_path.iterdir()) == [directory]
    assert (directory / "stream.bin").read_bytes() == b"QE"
    assert json.loads((directory / "finding.json").read_text())["bytes"] == 2
    assert finding(b"a").better(finding(b"b"))
    assert not finding(b"b").better(finding(b"a"))
    assert finding().better(None)


def test_other_signature_other_directory(tmp_path: Path) -> None:
    one = finding()
    other = replace(one, look=replace(one.look, signature="reject -- x, not accept"))
    assert one.save(tmp_path) != other.save(tmp_path)


def test_known(tmp_path: Path) -> None:
    file = tmp_path / "known.toml"
    file.write_text('[[finding]]\nsignature = "crash: *"\nwhy = "Old."\nname = "QEMU"\n')
    (known,) = known_findings("Small One", file)
    assert known == Known("crash: *", "Old.", "QEMU")
    assert known.covers("QEMU", "crash: x")
    assert not known.covers("spec", "crash: x")
    assert not known.covers("QEMU", "timeout: x")


@pytest.mark.parametrize(
    "text", ["", "[[finding]]", '[[finding]]\nsignature="x"', "x", "finding=1"]
)
def test_not_known(tmp_path: Path, text: str) -> None:
    file = tmp_path / "known.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match="known"):
        known_findings("Small One", file)
