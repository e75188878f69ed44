"""Whether what a target says of a case is what the rules say."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from savevm_conformance.cases import Case
from savevm_conformance.protocol import NO_ANSWER
from savevm_conformance.results import Outcome, Target
from savevm_conformance.targets import OURS

__all__ = [
    "COMPARED",
    "Judgement",
    "differences",
    "judge",
    "judge_writing",
    "judge_written",
    "said",
]

# What is compared of a verdict, if the target says it and the expectation has it.
COMPARED: Final = {
    "accept": ("findings", "dialect", "records", "ram", "transcript", "rebuilt"),
    "reject": ("class", "offset", "section", "rule"),
}
# Lines of differences that are told, and characters of each; others come from who knows where.
_LINES: Final = 12
_WIDTH: Final = 300
_WHY: Final = 3000


@dataclass(frozen=True, slots=True)
class Judgement:
    """The outcome, and for people what was expected, what came, and where they differ."""

    outcome: Outcome
    expected: str
    got: str
    detail: tuple[str, ...] = ()


def expectation(case: Case, role: str, target: str) -> dict[str, Any]:
    """What a role makes of a case; of what the rules leave open, our own do as ``savevm`` says."""
    expect = case.expect
    if expect["verdict"] == "either" and target in OURS:
        expect = expect["savevm"]
    if role == "loader" and case.loader is not None:
        return case.loader
    if expect["verdict"] == "accept":
        # Read and written again it is the same bytes.
        return {**expect, "rebuilt": hashlib.sha256(case.stream.read_bytes()).hexdigest()}
    return expect


def judge(case: Case, role: str, target: Target, reply: dict[str, Any]) -> Judgement:
    """Hold the reply of a reader or loader against a case."""
    expect = expectation(case, role, target.target)
    verdict, got = expect["verdict"], reply["outcome"]
    if got not in ("accept", "reject"):
        return _neither(reply, said(expect))
    if verdict == "either":
        return Judgement("pass", "accept or reject", said(reply))
    if role == "loader":
        reply = _only_listed(expect, reply)
    wrong = [f"{verdict} expected"] if got != verdict else differences(expect, reply, target.says)
    return Judgement("fail" if wrong else "pass", said(expect), said(reply), tuple(wrong))


def _neither(reply: dict[str, Any], expected: str) -> Judgement:
    """Of a reply that is no answer to the question."""
    got = reply["outcome"]
    why = str(reply.get("why", f"the outcome {got[:_WIDTH]!r}, which is none here"))[:_WHY]
    return Judgement(got if got in NO_ANSWER else "error", expected, why)


def differences(expect: dict[str, Any], reply: dict[str, Any], says: Sequence[str]) -> list[str]:
    """Where a reply with the outcome that was expected is another one, of what its target says."""
    wrong: list[str] = []
    for key in COMPARED[reply["outcome"]]:
        if key not in says or key not in expect:
            continue
        if key not in reply:
            wrong.append(f"it does not say its {key}, as it said that it would")
        elif reply[key] != expect[key]:
            wrong += [f"{key}: {line}" for line in _difference(expect[key], reply[key])]
    return [line[:_WIDTH] for line in wrong[:_LINES]]


def _only_listed(expect: dict[str, Any], verdict: dict[str, Any]) -> dict[str, Any]:
    """``verdict`` without the blocks that the machine has besides those of the stream."""
    if "ram" not in expect or "ram" not in verdict:
        return verdict
    listed = {name: digest for name, digest in verdict["ram"].items() if name in expect["ram"]}
    return {**verdict, "ram": listed}


def _difference(expected: Any, got: Any) -> list[str]:
    if isinstance(expected, dict) and isinstance(got, dict):
        keys = [key for key in sorted({*expected, *got}) if expected.get(key) != got.get(key)]
        return [
            f"{key}: {got.get(key, 'absent')}, not {expected.get(key, 'absent')}" for key in keys
        ]
    if isinstance(expected, list) and isinstance(got, list):
        for one, other in zip(expected, got, strict=False):
            if one != other:
                return [f"{_entry(other)}, not {_entry(one)}"]
        missing, more = expected[len(got) :], got[len(expected) :]
        return [f"missing: {_entry(each)}" for each in missing] + [
            f"too many: {_entry(each)}" for each in more
        ]
    return [f"{_entry(got)}, not {_entry(expected)}"]


def said(verdict: dict[str, Any]) -> str:
    """A verdict, as expected or as a target gave it, in one line."""
    kind = verdict.get("verdict", verdict.get("outcome"))
    words = [str(kind)]
    if kind == "reject":
        words += [str(verdict[key]) for key in ("rule", "class") if key in verdict]
        if "offset" in verdict:
            words.append(f"at {verdict['offset']}")
        if verdict.get("section") is not None:
            words.append(f"in {json.dumps(verdict['section'])}")
        if "detail" in verdict:
            words.append(f"({verdict['detail']})")
    elif kind == "accept":
        words += [str(verdict["dialect"])] if "dialect" in verdict else []
        findings = verdict.get("findings")
        if isinstance(findings, list) and findings:
            words += ["with", ", ".join(map(_entry, findings))]
    return " ".join(words)[:_WIDTH]


def _entry(value: Any) -> str:
    """A part of a verdict: as in JSON, or of a finding what there is and where."""
    try:
        section = value.get("section")
        where = "" if section is None else f" in {json.dumps(section)}"
        return f"{value['rule']} at {value['offset']}{where}"
    except (AttributeError, KeyError):
        return json.dumps(value)


def judge_writing(case: Case, reply: dict[str, Any]) -> Judgement | None:
    """Hold the reply of a writer or peer against a case; None where it wrote, as it should have."""
    wanted, got = case.expect.get("outcome", "written"), reply["outcome"]
    if got in ("written", "reject"):
        if (got, wanted) == ("written", "written"):
            return None
        return Judgement("pass" if got == wanted else "fail", wanted, said(reply))
    return _neither(reply, wanted)


def judge_written(case: Case, reading: dict[str, Any], sections: list[str]) -> Judgement:
    """Hold what was written against a case: how it was read, and the sections that are in it."""
    expect = case.expect
    # A peer writes what came in; what the stream has of other sections is its machine's affair.
    wanted: dict[str, Any] = {"verdict": "accept", "findings": []}
    wanted |= {key: expect[key] for key in ("dialect", "ram") if key in expect}
    if reading["outcome"] != "accept":
        why = (str(reading["why"])[:_WHY],) if "why" in reading else ()
        return Judgement("fail", said(wanted), f"what it wrote: {said(reading)}", why)
    if case.machine is not None:
        reading = _only_listed(wanted, reading)
    wrong = []
    for key in ("findings", "dialect", "ram"):
        if key in wanted and reading[key] != wanted[key]:
            wrong += [f"{key}: {line}" for line in _difference(wanted[key], reading[key])]
    listed = expect.get("sections", [])
    wrong += [f"no section {line}" for line in listed if line not in sections]
    if case.machine is None and not wrong and sections != listed:
        wrong += [f"sections: {line}" for line in _difference(listed, sections)]
    got = f"what it wrote: {said(reading)}"
    lines = tuple(line[:_WIDTH] for line in wrong[:_LINES])
    return Judgement("fail" if wrong else "pass", said(wanted), got, lines)
