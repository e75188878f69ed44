"""Plans of how the operations of a byte channel fail."""

import errno
from dataclasses import dataclass
from typing import Final, Literal

from hypothesis import strategies as st

from .derive import Drawer

__all__ = ["ERRNOS", "Fault", "FaultPlan", "Operation", "fault_plans"]

Operation = Literal["read", "write", "close", "rate_limit"]
"""What an operation of a channel does, in whatever form (from one buffer or from many)."""

ERRNOS: Final = (errno.EIO, errno.EPIPE, errno.ECONNRESET, errno.ENOSPC, errno.ETIMEDOUT)
"""Errors that are for good."""

_OPERATIONS: Final[tuple[Operation, ...]] = ("read", "write", "close", "rate_limit")
# Of one operation.
_CALLS_MAX: Final = 12
_PLACES: Final = st.integers(0, 1 << 16)


@dataclass(frozen=True)
class Fault:
    """Call number ``call`` of an operation, from 0 on, gives ``result``.

    A positive result lets at most so many bytes through, 0 is the end of the input (of "write":
    nothing was taken), and a negative one is -errno: -EAGAIN is "not now", -EINTR "again".
    """

    operation: Operation
    call: int
    result: int


@dataclass(frozen=True)
class FaultPlan:
    """The faults of a channel; nothing in it takes time.

    From ``closed_at`` bytes on, if it is not None, nothing can be read or written: operations give
    ``closed``, which is 0 or -errno.
    """

    faults: tuple[Fault, ...] = ()
    closed_at: int | None = None
    closed: int = 0

    def result(self, operation: Operation, call: int, position: int, size: int) -> int:
        """What a call is to give that can move up to ``size`` bytes at ``position``.

        If that is positive, so many bytes are to be moved, and their number given.  For "close" and
        "rate_limit" ``size`` is what they would give.
        """
        for fault in self.faults:
            if (fault.operation, fault.call) == (operation, call):
                size = min(size, fault.result) if fault.result > 0 else fault.result
        if self.closed_at is None or operation in ("close", "rate_limit") or size <= 0:
            return size
        return min(size, self.closed_at - position) if position < self.closed_at else self.closed

    @property
    def fatal(self) -> bool:
        """Whether the plan has more than delays: an error, or an end."""
        return self.closed_at is not None or any(map(_is_fatal, self.faults))


def _is_fatal(fault: Fault) -> bool:
    if fault.result == 0:
        return fault.operation in ("read", "write")
    return fault.result < 0 and fault.result not in (-errno.EAGAIN, -errno.EINTR)


@st.composite
def _faults(draw: Drawer, operations: tuple[Operation, ...], errors: bool) -> Fault:
    operation = draw(st.sampled_from(operations))
    call = draw(st.integers(0, _CALLS_MAX))
    delays = st.sampled_from([-errno.EAGAIN, -errno.EINTR])
    fatal = st.sampled_from([-error for error in ERRNOS])
    match operation:
        case "close":
            result = fatal if errors else st.just(0)
        case "rate_limit":
            result = st.just(1)
        case _:
            result = _PLACES.map(lambda size: size + 1) | delays
            if errors:
                result |= fatal | st.just(0)
    return Fault(operation, 0 if operation == "close" else call, draw(result))


@st.composite
def fault_plans(
    draw: Drawer, operations: tuple[Operation, ...] = _OPERATIONS, *, errors: bool = True
) -> FaultPlan:
    """Plans for a channel of which only these ``operations`` fail.

    Without ``errors`` all bytes get through in the end: short reads and writes, -EAGAIN, -EINTR and
    pauses.  A call has one fault at most.
    """
    faults = draw(
        st.lists(_faults(operations, errors), max_size=6, unique_by=lambda f: (f.operation, f.call))
    )
    if not (errors and draw(st.booleans())):
        return FaultPlan(tuple(faults))
    closed = draw(st.sampled_from([0, *(-error for error in ERRNOS)]))
    return FaultPlan(tuple(faults), draw(_PLACES), closed)
