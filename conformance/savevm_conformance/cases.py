"""The vectors on disk, and which of them are wanted."""

import json
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

__all__ = ["VERDICTS", "Case", "Selection", "load_cases"]

VERDICTS: Final = ("accept", "reject", "either", "write")


@dataclass(frozen=True, slots=True)
class Case:
    """A vector.  ``expect`` is what ``expect.json`` holds.

    ``requires`` are the features that a reader needs for it; ``machine`` is that which its stream
    is of and ``loader`` what that machine makes of it, where it is not what a reader does.
    """

    id: str
    area: str
    verdict: str
    description: str
    rules: tuple[str, ...]
    directory: Path
    expect: dict[str, Any]
    requires: frozenset[str] = frozenset()
    machine: dict[str, Any] | None = None
    loader: dict[str, Any] | None = None

    @property
    def stream(self) -> Path:
        """The file with the bytes."""
        return self.directory / "stream.bin"

    @property
    def state(self) -> Path:
        """The file with the state that a writer is given."""
        return self.directory / "state.json"

    @property
    def roles(self) -> tuple[str, ...]:
        """Who is held against it."""
        if self.verdict == "write":
            return ("writer",)
        if self.machine is None:
            return ("reader",)
        loads = self.verdict == "accept" and self.loader is None
        return ("reader", "loader", "peer") if loads else ("reader", "loader")

    def message(self, role: str) -> dict[str, Any]:
        """What an adapter is told of it; writers and peers also need an ``output``."""
        given = {"state": str(self.state)} if role == "writer" else {"stream": str(self.stream)}
        machine = {"machine": self.machine} if self.machine else {}
        return {"id": self.id, "role": role, **given, **machine}


@dataclass(frozen=True, slots=True)
class Selection:
    """Of each kind that is named, a case must be of one; ``globs`` are of ids."""

    areas: frozenset[str] = frozenset()
    rules: frozenset[str] = frozenset()
    globs: tuple[str, ...] = field(default=())
    features: frozenset[str] = frozenset()

    def takes(self, case: Case) -> bool:
        """Whether a case is selected."""
        return (
            (not self.areas or case.area in self.areas)
            and (not self.rules or bool(self.rules.intersection(case.rules)))
            and (not self.globs or any(fnmatchcase(case.id, glob) for glob in self.globs))
            and (not self.features or bool(self.features & case.requires))
        )


def load_cases(directory: Path, selection: Selection = Selection()) -> tuple[Case, ...]:
    """The selected vectors under ``directory``, by id.

    Raises:
        OSError, ValueError: a vector is not whole.
    """
    found = []
    for path in sorted(directory.glob("*/*/*/case.toml")):
        if path.parts[-3] in VERDICTS:
            try:
                case = _case(path)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path.parent}: {error!r}") from error
            if selection.takes(case):
                found.append(case)
    return tuple(found)


def _case(path: Path) -> Case:
    area, verdict = path.parts[-4], path.parts[-3]
    entry = tomllib.loads(path.read_text("utf-8"))
    expect = json.loads((path.parent / "expect.json").read_text("utf-8"))
    if expect["verdict"] != verdict:
        raise ValueError(f"verdict {expect['verdict']!r}")
    return Case(
        id=entry["id"],
        area=area,
        verdict=verdict,
        description=entry["description"],
        rules=tuple(entry["rules"]),
        directory=path.parent,
        expect=expect,
        requires=frozenset(entry.get("requires", ())),
        machine=entry.get("machine"),
        loader=entry.get("loader"),
    )
