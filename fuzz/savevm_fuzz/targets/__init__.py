"""Targets: what gets the mutated streams.

``reference`` and ``spec`` run in this process, a QEMU is started and given streams to load, and
everything else is a program that speaks the protocol of the conformance suite.
"""

from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol, runtime_checkable

from savevm_conformance.targets import OURS

__all__ = ["MEMORY", "SECONDS", "Quick", "Staying", "Target", "Writer", "open_target", "scratch"]

# Of one stream: seconds, and bytes of memory (in this process, besides what it has already).
SECONDS: Final = 10.0
MEMORY: Final = 1 << 30
_MEMORY_HERE: Final = 256 << 20
_SHARED_MEMORY: Final = "/dev/shm"


class Target(Protocol):
    """Something that makes something of a stream.

    ``name`` and ``version`` are those of the implementation, ``says`` what its verdicts contain.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def says(self) -> tuple[str, ...]: ...

    def run(self, data: bytes) -> dict[str, Any]:
        """What it makes of a stream: a reply of the protocol, but for its id.

        The outcome is accept or reject; or else error, crash, timeout or memory, with ``why``.
        """

    def predict(self, data: bytes) -> dict[str, Any]:
        """What it should make of it: such a reply, or the outcome skip where nothing is known."""

    def close(self) -> None:
        """End what was started."""


@runtime_checkable
class Quick(Target, Protocol):
    """A target that can tell less, but sooner."""

    def quick(self, data: bytes) -> dict[str, Any]:
        """As ``run``, without what takes long; ``kinds`` are the kinds of what was met."""


@runtime_checkable
class Staying(Target, Protocol):
    """A target that remembers more of the streams before than it should."""

    def after(self, before: Sequence[bytes]) -> None:
        """Begin anew, with these ahead of what is run next."""


@runtime_checkable
class Writer(Target, Protocol):
    """A target that writes streams, if ``roles`` has "writer", of states that need no other features."""

    @property
    def roles(self) -> tuple[str, ...]: ...
    @property
    def features(self) -> frozenset[str]: ...

    def write(self, message: dict[str, Any]) -> dict[str, Any]:
        """The reply to a case for writers: ``state`` and ``output`` name files."""


def scratch() -> "TemporaryDirectory[str]":
    """A directory for what lives shortly, in memory where there is a place for it."""
    try:
        return TemporaryDirectory(prefix="savevm-", dir=_SHARED_MEMORY)
    except OSError:
        return TemporaryDirectory(prefix="savevm-")


def open_target(name: str, *, seconds: float = SECONDS, memory: int | None = None) -> Target:
    """The target of that name, ready to run.

    Raises:
        ValueError: there is no such target, or it does not start.
    """
    # Each needs only its own packages.
    if name in OURS:
        from savevm_fuzz.targets.inprocess import Grammar, Reference

        kind = Reference if name == "reference" else Grammar
        return kind(seconds=seconds, memory=memory or _MEMORY_HERE)
    if name.startswith("qemu:"):
        from savevm_fuzz.targets.qemu import open_qemu

        return open_qemu(name, seconds=seconds, memory=memory or MEMORY)
    from savevm_fuzz.targets.adapter import AdapterTarget

    return AdapterTarget(name, seconds=seconds, memory=memory or MEMORY)
