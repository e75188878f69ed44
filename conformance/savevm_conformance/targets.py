"""Targets: what the vectors are run against, as named on the command line."""

import shlex
import sys
from typing import Final

__all__ = ["OURS", "TARGETS", "command_of", "words"]

# Held to what the rules leave open, too.
OURS: Final = ("reference", "spec")
_ADAPTERS: Final = "savevm_conformance.adapters."
# By what stands before the colon: the adapter, and what stands behind it.
TARGETS: Final = {
    "reference": "this implementation",
    "spec": "the grammar",
    "machine": "the emulated machine of this implementation, over QMP",
    "qemu:PATH": "a QEMU: a binary, or a directory with qemu-system-*",
    "analyze-migration:SCRIPT": "QEMU's scripts/analyze-migration.py",
    "volatility3[:PYTHON]": "volatility3, installed for PYTHON (this one)",
    "cmd:COMMAND": "a program that speaks the protocol",
}


def words(command: str) -> list[str]:
    """The words of a command line, as a shell would have them; raises ``ValueError`` for none."""
    try:
        if argv := shlex.split(command):
            return argv
    except ValueError as error:
        raise ValueError(f"{command!r}: {error}") from error
    raise ValueError("a command without words")


def command_of(target: str) -> list[str]:
    """The command line of a target's adapter.

    Raises:
        ValueError: there is no such target.
    """
    kind, colon, rest = target.partition(":")
    if kind == "cmd":
        return words(rest)
    known = {name.partition(":")[0].partition("[")[0] for name in TARGETS}
    if kind not in known:
        raise ValueError(f"no target {target!r}; there are {', '.join(TARGETS)}")
    if not rest and (colon or kind in ("qemu", "analyze-migration")):
        raise ValueError(f"{kind}: needs a path behind the colon")
    if rest and kind in (*OURS, "machine"):
        raise ValueError(f"{kind} takes nothing behind it")
    module = {"machine": "qemu"}.get(kind, kind.replace("-", "_"))
    return [sys.executable, "-m", _ADAPTERS + module, *([rest] if rest else [])]
