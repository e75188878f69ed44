"""The page on what was found in QEMU: it has all that is known, and what it says of it is so.

SAVEVM_QEMUS names those that are asked, as in test_fuzz_qemu.py.
"""

import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from test_fuzz_qemu import NO_QEMU, places

from savevm_conformance.cases import load_cases
from savevm_conformance.locate import vectors_directory
from savevm_fuzz.findings import examine, known_findings
from savevm_fuzz.targets.board import RELEASES, verdict
from savevm_fuzz.targets.qemu import QemuTarget, open_qemu
from savevm_spec.rules import rules

PAGE = (Path(__file__).parents[2] / "docs" / "findings.rst").read_text("utf-8")
BLOCKS = {"riscv.spike.ram": bytes(0x4000), "riscv.spike.mrom": bytes(0xF000)}
PLAIN = bytes.fromhex("5145564d0000000307000000057370696b6500")


class Entry(NamedTuple):
    """A finding: ``fields`` are those above its text, ``streams`` those below."""

    number: int
    title: str
    fields: dict[str, str]
    streams: tuple[bytes, ...]

    @property
    def versions(self) -> list[str]:
        return self.fields["QEMU"].split(", ")

    @property
    def kind(self) -> str:
        return self.fields["kind"]

    def literals(self, *names: str) -> set[str]:
        return {text for name in names for text in literals(self.fields.get(name, ""))}


def literals(text: str) -> list[str]:
    return re.findall(r"``(.+?)``", text)


def entries() -> Iterator[Entry]:
    parts = re.split(r"^(\d+)\. (.*)\n~+\n", PAGE, flags=re.MULTILINE)
    for number, title, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        fields = dict(re.findall(r"^:([\w ]+):((?:.*\n(?: .*\n)*))", text, re.MULTILINE))
        text = text.partition("\n\n")[2]
        streams = re.findall(r"\n((?:   [0-9a-f]+\n)+)", text)
        yield Entry(
            int(number),
            title,
            {name: value.strip() for name, value in fields.items()},
            tuple(bytes.fromhex("".join(lines.split())) for lines in streams),
        )


ENTRIES = list(entries())


def each(*wanted: str, sequences: bool = False) -> pytest.MarkDecorator:
    """The entries of such a kind with streams; ``sequences``: of those that only loadvm takes."""
    chosen = [
        entry
        for entry in ENTRIES
        if entry.kind in wanted
        and entry.streams
        and sequences == (entry.fields["way in"] == "``loadvm``")
    ]
    assert chosen
    return pytest.mark.parametrize("entry", [pytest.param(e, id=str(e.number)) for e in chosen])


def test_entries() -> None:
    assert [entry.number for entry in ENTRIES] == list(range(1, len(ENTRIES) + 1))
    assert len(ENTRIES) > 20
    for entry in ENTRIES:
        assert {"QEMU", "kind", "way in", "what it is"} <= entry.fields.keys(), entry.title
        assert set(entry.versions) <= set(RELEASES), entry.title
        assert entry.literals("way in") <= {"-incoming", "loadvm"}, entry.title


def test_all_that_is_known() -> None:
    told = set().union(*(entry.literals("signature") for entry in ENTRIES))
    assert told == {known.signature for known in known_findings("QEMU")}


def test_rules_have_the_errata() -> None:
    for entry in ENTRIES:
        for rule in entry.literals("what it is"):
            errata = rules()[rule].errata
            assert "QEMU" in (errata or ""), rule


def test_known_signatures_of_a_rule_are_errata() -> None:
    told = set().union(*(entry.literals("what it is") for entry in ENTRIES))
    for known in known_findings("QEMU"):
        if match := re.match(r"(?:timeout: )?reject ([^ ,]+)", known.signature):
            assert fnmatch.filter(told, match[1]), known.signature


def test_vectors_are_there() -> None:
    there = {case.id for case in load_cases(vectors_directory())}
    assert set().union(*(entry.literals("vector", "vectors") for entry in ENTRIES)) <= there


@each("silent acceptance")
def test_what_the_rules_refuse(entry: Entry) -> None:
    rules_of = entry.literals("what it is")
    for stream in entry.streams:
        reply = verdict(stream, entry.versions[-1], BLOCKS).reply
        assert (reply["outcome"], reply.get("rule") in rules_of) == ("reject", True)


@each("refusal")
def test_what_the_rules_take(entry: Entry) -> None:
    for stream in entry.streams:
        assert verdict(stream, entry.versions[-1], BLOCKS).reply["outcome"] == "accept"


# With real QEMUs


@pytest.fixture(
    name="target",
    scope="module",
    params=[pytest.param(at, id=str(number)) for number, at in enumerate(places())]
    or [pytest.param(None, marks=pytest.mark.skip(reason=NO_QEMU))],
)
def open_target(request: pytest.FixtureRequest) -> Iterator[QemuTarget]:
    try:
        target = open_qemu(f"qemu:{request.param}", seconds=5, memory=1 << 30)
    except ValueError as error:
        pytest.skip(str(error))
    yield target
    target.close()


def says(target: QemuTarget, entry: Entry) -> bool:
    """Whether it is said of this one."""
    return ".".join(target.version.split(".")[:2]) in entry.versions


@each("silent acceptance", "refusal", "crash")
def test_one_stream(target: QemuTarget, entry: Entry) -> None:
    outcome = {"silent acceptance": "accept", "refusal": "reject", "crash": "crash"}[entry.kind]
    for stream in entry.streams:
        seen = examine(target, stream)
        assert (seen.got["outcome"] == outcome) == says(target, entry)
        if says(target, entry):
            signatures = entry.literals("signature")
            assert any(fnmatch.fnmatchcase(seen.signature, each) for each in signatures)


@each("crash", sequences=True)
def test_snapshots(target: QemuTarget, entry: Entry) -> None:
    if entry.streams[:-1]:
        target.after(entry.streams[:-1])
        assert target.pid is not None
    target.after(entry.streams)
    # What is started by the last one may end it a moment later.
    ended = target.pid is None or target.run(PLAIN)["outcome"] == "crash"
    assert ended == says(target, entry)
