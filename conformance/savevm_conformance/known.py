"""Known failures: what is known to be wrong with an implementation, and why."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any

from savevm_conformance.protocol import ROLES
from savevm_conformance.results import OUTCOMES, Target

__all__ = ["Known", "known_failures"]

_LISTS = ("cases", "outcomes")


@dataclass(frozen=True, slots=True)
class Known:
    """Cases (globs of ids), of one role and with one of some outcomes where they are given."""

    cases: tuple[str, ...]
    why: str
    role: str | None = None
    outcomes: tuple[str, ...] = ()
    url: str | None = None

    def covers(self, case: str, role: str) -> bool:
        """Whether it speaks of a case."""
        return self.role in (None, role) and any(fnmatchcase(case, glob) for glob in self.cases)

    def expects(self, outcome: str) -> bool:
        """Whether a failure is of the kind that is known."""
        return not self.outcomes or outcome in self.outcomes


def known_failures(target: Target, extra: Sequence[Path] = (), *, ours: bool = True) -> list[Known]:
    """What is known of a target: in the files ``extra`` and, with ``ours``, in those of the suite.

    Those are called like the implementation, with or without its release: ``qemu-7.2.toml``,
    ``qemu.toml``.

    Raises:
        OSError, ValueError: a file is not one of known failures.
    """
    name = target.name.lower().replace(" ", "-")
    release = ".".join(target.version.split(".")[:2])
    found = []
    if ours:
        for file in (f"{name}-{release}.toml", f"{name}.toml"):
            at = files("savevm_conformance").joinpath("known", file)
            if at.is_file():
                found += _parse(at.read_text("utf-8"), file)
    for path in extra:
        found += _parse(path.read_text("utf-8"), str(path))
    return found


def _parse(text: str, name: str) -> list[Known]:
    try:
        entries = tomllib.loads(text).get("failure", [])
        return [_entry(entry) for entry in entries]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{name}: {error!r} in a list of known failures") from error


def _entry(entry: dict[str, Any]) -> Known:
    known = Known(**entry | {key: _words(entry[key]) for key in _LISTS if key in entry})
    if not set(known.outcomes) <= set(OUTCOMES) - {"pass", "skip"}:
        raise ValueError(f"outcomes {known.outcomes}")
    if known.role not in (None, *ROLES):
        raise ValueError(f"role {known.role}")
    return known


def _words(value: Any) -> tuple[str, ...]:
    # One glob without brackets would be a glob for each of its letters.
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ValueError(f"{value!r} is not a list of strings")
    return tuple(value)
