"""What the reports have in common: a result in a word, its name, and text that any of them can take."""

import re
from typing import Final, Literal

from savevm_conformance.results import Outcome, Report, Result, Target

__all__ = ["STATES", "State", "called", "counted", "name", "plain", "state"]

State = Outcome | Literal["known", "unexpected"]
# The worst first.
STATES: Final[tuple[State, ...]] = (
    "crash",
    "timeout",
    "memory",
    "error",
    "fail",
    "unexpected",
    "known",
    "pass",
    "skip",
)
# What XML has no way to say, and what a terminal would obey.
_UNSPEAKABLE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def state(result: Result) -> State:
    """The outcome, or "known" for a known failure and "unexpected" for a pass where one was."""
    if result.known is not None:
        return "known"
    return "unexpected" if result.unexpected else result.outcome


def name(result: Result) -> str:
    """The id of the case, and the role unless it is the common one."""
    return result.case if result.role == "reader" else f"{result.case} [{result.role}]"


def called(target: Target) -> str:
    """What the implementation calls itself, with its version."""
    return plain(f"{target.name} {target.version}".strip())


def plain(text: str) -> str:
    r"""The text with control characters, surrogates and noncharacters as ``\x1b``, ``\ud800``."""
    return _UNSPEAKABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def counted(report: Report) -> str:
    """How much was run."""
    words = [f"{report.ran - len(report.streams)} results on vectors"]
    if report.streams:
        words.append(f"{len(report.streams)} streams")
    return ", ".join(words)
