"""The strategies: valid, varied, small when shrunk, and following the grammar."""

import errno
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import construct as c
import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

import savevm_fuzz.strategies as s
from savevm.transcript import rebuild, transcribe
from savevm_conformance.adapters.reference import writer
from savevm_conformance.locate import vectors_directory
from savevm_spec import command, section, stream
from savevm_spec.combinators import Reported, held
from savevm_spec.constants import (
    COMMAND_NAMES,
    LIVE_VERSIONS,
    RAM_CONTINUE,
    RAM_IDSTR,
    SECTION_FULL,
    SECTION_NAMES,
    SECTION_START,
)
from savevm_spec.dialects import DIALECTS
from savevm_spec.ram.pages import Page, ZeroPages

# The same examples in every run; no check of health is left out but that of time.
few = settings(
    max_examples=25,
    database=None,
    derandomize=True,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)
# For `find`, which looks no further than it must.
until_found = settings(few, max_examples=2000)
HEADER = b"QEVM\0\0\0\3"


def check(data: bytes) -> dict[str, Any]:
    """The transcript on which grammar and reference agree; and each writes again what it read."""
    parsed = stream.parse(data)
    assert parsed.error is None, parsed.error
    told = stream.transcript(parsed)
    assert transcribe(data) == told
    assert stream.build(parsed) == data == rebuild(data)
    return told


@pytest.mark.parametrize("dialect", DIALECTS)
def test_streams(dialect: str) -> None:
    @few
    @given(s.streams(dialect))
    def agree(data: bytes) -> None:
        assert check(data)["dialect"] == dialect

    agree()


@few
@given(s.configurations())
def test_configurations(data: bytes) -> None:
    assert check(HEADER + data + b"\0")["records"][1]["record"] == "configuration"


@few
@given(s.sections())
def test_sections(data: bytes) -> None:
    told = check(HEADER + b"\7\0\0\0\0" + data)
    assert told["footers"] is not False
    assert told["records"][-1]["record"] == "eof"


@few
@given(s.commands())
def test_commands(data: bytes) -> None:
    assert check(HEADER + data + b"\0")["records"][1]["record"] == "command"


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_ram(version: int) -> None:
    head = section.Start.build(
        {"section_id": 0, "idstr": RAM_IDSTR, "instance_id": 0, "version_id": version}
        | {"identity": section.Identity(RAM_IDSTR, 0, version, None)}
    )

    @few
    @given(s.ram_bodies(version))
    def agree(body: bytes) -> None:
        found = check(HEADER + b"\4" + head + body + b"\0")["records"][1]["body"]
        assert found["length"] == len(body)

    agree()


@few
@given(s.devices())
def test_devices(device: s.DeviceState) -> None:
    """A device's body is as long as its description says, and what a reader finds is its state."""
    name, instance = device.description["name"], device.description["instance_id"]
    version = device.description.get("version", 0)
    text = s.dumps({"devices": [device.description]}).encode()
    head = bytes([len(name)]) + name.encode("latin-1") + instance.to_bytes(4) + version.to_bytes(4)
    data = b"\4\0\0\0\0" + head + device.body + b"\0\6" + len(text).to_bytes(4) + text
    body = check(HEADER + data)["records"][1]["body"]
    assert body["length"] == len(device.body)
    assert device.state.items() <= body.items()


@few
@given(state=s.states())
def test_states(state: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    schema = json.loads((vectors_directory() / "state.schema.json").read_text("utf-8"))
    jsonschema.validate(state, schema)
    assert s.expressible(state)
    found = check(written(state, tmp_path_factory.mktemp("state")))
    assert found["dialect"] == state["dialect"] or not state["ram"]
    names = [(d["idstr"], d["instance_id"], d["version_id"]) for d in state["devices"]]
    told = [r for r in found["records"] if r.get("idstr", RAM_IDSTR) != RAM_IDSTR]
    assert [(r["idstr"], r["instance_id"], r["version_id"]) for r in told] == names


@few
@given(state=s.inexpressible_states())
def test_inexpressible_states(state: dict[str, Any]) -> None:
    schema = json.loads((vectors_directory() / "state.schema.json").read_text("utf-8"))
    jsonschema.validate(state, schema)
    assert not s.expressible(state)


def written(state: dict[str, Any], directory: Path) -> bytes:
    """What the reference makes of a state."""
    given, output = directory / "state.json", directory / "stream.bin"
    given.write_text(json.dumps(state), "utf-8")
    assert writer({"state": str(given), "output": str(output)}) == {"outcome": "written"}
    return output.read_bytes()


# Variety

RECORDS = {"configuration", "vmdescription", "command", "eof", *SECTION_NAMES.values()}
FINDINGS = {
    "configuration.machine.empty",
    "ram.block.duplicate",
    "ram.zero.fill",
    "section.body.undescribed",
    "section.id.reused",
    "stream.trailing-data",
    "stream.undelimited",
    "vmdesc.page-size",
}


def collected(strategy: st.SearchStrategy[Any], kinds: Callable[[Any], Iterable[str]]) -> set[str]:
    """What there is in examples."""
    seen: set[str] = set()

    @settings(few, max_examples=500, phases=[Phase.generate])
    @given(strategy)
    def collect(example: Any) -> None:
        seen.update(kinds(example))

    collect()
    return seen


def test_variety_of_streams() -> None:
    def kinds(data: bytes) -> Iterable[str]:
        told = stream.transcript(stream.parse(data))
        yield told["dialect"]
        yield from findings(told)
        for record in told["records"]:
            yield from (record["record"], record.get("idstr", ""))
            yield f"body {record.get('body', {}).get('kind')}"

    bodies = {f"body {kind}" for kind in ("buffer", "vmstate", "opaque", "undelimited", "ram")}
    wanted = RECORDS | FINDINGS | bodies | DIALECTS.keys() | LIVE_VERSIONS.keys()
    found = collected(s.streams(), kinds) | collected(s.streams("v3-configuration"), kinds)
    assert wanted - found == set()


def test_variety_of_commands() -> None:
    seen = collected(s.values(command.Command), lambda found: [COMMAND_NAMES[found.head.number]])
    assert seen == {*COMMAND_NAMES.values()}


def test_variety_of_ram() -> None:
    def kinds(words: list[Any]) -> Iterable[str]:
        for word in words:
            match word:
                case Page(content=bytes()):
                    yield "contents"
                case Page(flags=flags) if flags & RAM_CONTINUE:
                    yield "continue"
                case ZeroPages(number=number) if number > 1:
                    yield "zeros"
                case int():
                    yield str(word)
        yield f"{sum(isinstance(word, Page) for word in words) > 4} many"

    wanted = {"contents", "continue", "zeros", "16", "128", "512", "True many", "False many"}
    assert wanted - collected(s.ram_words(), kinds) == set()


def test_variety_of_descriptions() -> None:
    def kinds(device: s.DeviceState) -> Iterable[str]:
        text = s.dumps(device.description)
        yield from re.findall('"type": "([^"]*)"', text)
        yield from re.findall("array_len|subsections", text)

    wanted = {"struct", "tmp", "vstruct", "qtailq", "qlist", "nullptr", "ptr-marker"}
    wanted |= {"bool", "uint8", "buffer", "array_len", "subsections"}
    assert wanted - collected(s.devices(), kinds) == set()


def test_variety_of_page_sizes() -> None:
    """Nothing states the page size but the addresses of pages."""

    def kinds(data: bytes) -> Iterable[str]:
        yield str(stream.parse(HEADER + data).reading.ram.page_size)

    assert collected(s.sections("v3-ram4"), kinds) - {"None", "4096"}


# Shrinking


@pytest.mark.parametrize(("dialect", "size"), [("v1", 8), ("v2", 16), ("v3-2008", 9)])
def test_the_simplest(dialect: str, size: int) -> None:
    assert len(find(s.streams(dialect), lambda _: True, settings=until_found)) == size
    assert len(stream.Grammar.build(s.simplest(stream.Grammar, dialect))) == size


@pytest.mark.parametrize(
    ("dialect", "wanted", "size"),
    [
        ("v3-configuration", lambda told: True, 14),
        # A section "ram" of 17 bytes before its body, which is the word EOS, and a footer.
        ("v3-configuration", lambda told: "section-full" in records(told), 14 + 17 + 8 + 5),
        ("v3-configuration", lambda told: "command" in records(told), 14 + 5),
        (
            "v3-configuration",
            lambda told: "section.id.reused" in findings(told),
            14 + 2 * (17 + 8 + 8),
        ),
        ("v3-configuration", lambda told: "stream.trailing-data" in findings(told), 15),
        # The word of one block, its name of no bytes and length, a page record of fill 01, EOS.
        ("v3-ram4", lambda told: "ram.zero.fill" in findings(told), 9 + 17 + 8 + 9 + 10 + 8),
        (
            "v3-ram3",
            lambda told: '"fill": 1' in json.dumps(told),
            9 + 17 + 8 + 9 + 8,
        ),
        ("v2", lambda told: "record" in records(told), 16 + 18),
    ],
)
def test_shrinking(dialect: str, wanted: Callable[[dict[str, Any]], bool], size: int) -> None:
    """What is found is as small as it can be, or nearly: another block or section may be left.

    Not each time: what Hypothesis begins with depends on what else is loaded.
    """

    def found(seed: int) -> bytes:
        return find(
            s.streams(dialect),
            lambda data: wanted(stream.transcript(stream.parse(data))),
            settings=until_found,
            random=Random(seed),
        )

    assert any(len(found(seed)) <= 1.5 * size for seed in range(4))


def records(told: dict[str, Any]) -> list[str]:
    return [record["record"] for record in told["records"]]


def findings(told: dict[str, Any]) -> list[str]:
    return [finding["rule"] for finding in told["findings"]]


# Following the grammar

NUMBERS = frozenset({3, 5, 8})


def test_every_class_of_construct() -> None:
    """Fields as a schema may get them are drawn by what they are."""
    schema = c.Struct(
        "signed" / c.Int16sb,
        "one_of" / c.OneOf(c.Int32ub, NUMBERS),
        "held" / held("stream.truncated", c.Int32ub, lambda value, _: 10 <= value < 1 << 20),
        "none_of" / c.NoneOf(c.Int8ub, [7]),
        "length" / c.Int32ub,
        "data" / c.Bytes(c.this.length),
        "reported" / Reported("stream.truncated", c.Int8ub, lambda value: value == 0),
        "choice" / c.Switch(c.this.one_of, {3: c.Const(b"three"), 5: c.Int64ub}),
        "names" / c.PrefixedArray(c.Int8ub, c.PascalString(c.Int8ub, "utf-8")),
        "until" / c.RepeatUntil(lambda value, *_: value == 0, c.Int8ub),
    )

    @few
    @given(s.values(schema))
    def agree(value: Any) -> None:
        assert c.Struct.parse(schema, schema.build(value)) == value

    agree()


def test_a_new_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that is added to a schema, held to a rule, is in every stream that has its record."""
    new = "generation" / held("section.truncated", c.Int16ub, lambda value, _: value > 1000)
    monkeypatch.setattr(section.Start, "subcons", [*section.Start.subcons, new])
    heads = []

    @few
    @given(s.values(stream.Grammar, "v3-configuration"))
    def has_it(value: Any) -> None:
        parsed = stream.parse(stream.Grammar.build(value))
        assert parsed.error is None
        for record in parsed.value.body.records:
            if record.type in (SECTION_START, SECTION_FULL):
                heads.append(record.content.head.generation)

    has_it()
    assert min(heads) > 1000


def test_a_class_that_nothing_draws() -> None:
    with pytest.raises(NotImplementedError, match="VarInt"):
        find(s.values(c.VarInt), lambda _: True, settings=few)


# Faults


@few
@given(s.fault_plans(errors=False), st.integers(0, 1 << 16))
def test_plans_without_errors_let_all_through(plan: s.FaultPlan, size: int) -> None:
    position = call = 0
    while position < size:
        result = plan.result("read", call, position, size - position)
        assert result > 0 or -result in (errno.EAGAIN, errno.EINTR)
        position += max(result, 0)
        call += 1
    assert not plan.fatal
    assert plan.result("close", 0, size, 0) == 0


@few
@given(s.fault_plans())
def test_plans_that_close_let_nothing_through_behind(plan: s.FaultPlan) -> None:
    if plan.closed_at is not None:
        assert plan.fatal
        assert plan.result("write", 1 << 32, plan.closed_at, 10) == plan.closed
        assert plan.result("write", 1 << 32, plan.closed_at - 1, 10) == 1 or not plan.closed_at


def test_plans_shrink() -> None:
    plan = find(s.fault_plans(), lambda plan: plan.fatal, settings=until_found)
    assert len(plan.faults) + (plan.closed_at is not None) == 1
