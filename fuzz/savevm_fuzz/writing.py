"""Random states for writers: what they write is read by the grammar."""

import json
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from savevm_conformance.adapters import ours, spec
from savevm_conformance.cases import Case
from savevm_conformance.generate.writes import Write
from savevm_conformance.judge import Judgement, judge_writing, judge_written
from savevm_conformance.transcripts import sections
from savevm_fuzz.engine import Campaign, Stats
from savevm_fuzz.findings import Finding, Look, look
from savevm_fuzz.strategies import expressible, inexpressible_states, states
from savevm_fuzz.targets import Target, Writer, open_target, scratch
from savevm_spec.dialects import DIALECTS

__all__ = ["fuzz_writer", "look_at_state"]

# States between two reports.
_BATCH: Final = 100
_SLOW: Final = ("timeout", "memory")
_SHRINKING_SLOW: Final = 12
_MISSING: Final = "no section"


class _WrongError(Exception):
    pass


def fuzz_writer(campaign: Campaign) -> Generator[Stats | Finding, None, None]:
    """Statistics now and then, and each finding, whose ``data`` is a state as JSON, made small.

    All runs in this process, whatever the number of workers.

    Raises:
        ValueError: the target is no writer.
    """
    began = time.monotonic()
    target = open_target(campaign.target.target, seconds=campaign.seconds, memory=campaign.memory)
    executions, signatures, slow = 0, set[str](), 0
    last: tuple[dict[str, Any], Look] | None = None

    def attempt(state: dict[str, Any]) -> None:
        nonlocal executions, last, slow
        if last is not None and last[1].kind in _SLOW:
            # One that takes all its time is made smaller only so often.
            slow += 1
            if slow > _SHRINKING_SLOW:
                return
        executions += 1
        seen = look_at_state(target, state)
        if seen.kind is not None and seen.signature not in signatures:
            last = state, seen
            # Hypothesis makes it small, and does not take another for it.
            raise _WrongError(seen.signature)

    try:
        batch = 0
        while not _enough(campaign, executions, time.monotonic() - began):
            left = _BATCH if campaign.executions is None else campaign.executions - executions
            run: Any = settings(
                max_examples=min(left, _BATCH),
                database=None,
                deadline=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            )(given(states() | inexpressible_states())(attempt))
            last, slow = None, 0
            # What is not so each time is told all the same.
            with suppress(_WrongError, Flaky):
                seed(f"{campaign.seed}/{batch}")(run)()
            yield Stats(executions, executions, 0, 0, round(time.monotonic() - began, 3))
            if last is not None:
                state, seen = last
                signatures.add(seen.signature)
                who = campaign.target
                data = (json.dumps(state, indent=1) + "\n").encode()
                yield Finding(
                    who.target, who.name, who.version, seen, data, "states", (), "state.json"
                )
            batch += 1
    finally:
        target.close()


def _enough(campaign: Campaign, executions: int, seconds: float) -> bool:
    if campaign.executions is not None:
        return executions >= campaign.executions
    assert campaign.duration is not None
    return seconds >= campaign.duration


def look_at_state(target: Target, state: dict[str, Any]) -> Look:
    """Have a state written, and see whether that is what is there.

    Raises:
        ValueError: the target is no writer.
    """
    if not isinstance(target, Writer) or "writer" not in target.roles:
        raise ValueError(f"{target.name} is no writer")
    refused = not expressible(state)
    write = Write("stream", "fuzz", "A random state.", (), state, refused)
    if not set(write.requires()) <= target.features:
        return Look(None, {"outcome": "skip"})
    with scratch() as place:
        expect = write.expect()
        if not refused and not state["ram"] and not DIALECTS[state["dialect"]].vmdescription:
            # It is the version of the section "ram" that tells older ones apart.
            del expect["dialect"]
        case = Case(write.id, "stream", "write", "", (), Path(place), expect)
        case.state.write_bytes(write.data)
        output = Path(place, "written.bin")
        reply = target.write({**case.message("writer"), "output": str(output)})
        if reply["outcome"] == "skip":
            return Look(None, reply)
        judgement = judge_writing(case, reply)
        if judgement is None:
            judgement = _judged(case, output)
    if judgement.outcome == "pass":
        return Look(None, reply)
    if judgement.outcome != "fail":
        return look(None, reply, ())
    lines = (f"expected {judgement.expected}", f"got {judgement.got}", *judgement.detail)
    what = judgement.detail[0].partition(":")[0] if judgement.detail else judgement.got
    # Which section it is that is not there makes no difference.
    what = _MISSING if what.startswith(_MISSING) else what.partition(" at ")[0]
    signature = f"written: {what}"
    return Look(None, reply, "disagreement", signature, lines)


def _judged(case: Case, output: Path) -> Judgement:
    if not output.is_file():
        return Judgement("fail", "written", "nothing was written")
    data = output.read_bytes()
    transcript = spec.transcribe(data)
    return judge_written(case, ours.verdict(transcript, data, spec.rebuild), sections(transcript))
