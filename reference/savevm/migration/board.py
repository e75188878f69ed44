"""What a migration wants of a machine, and of what describes the machine to a stream."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from savevm.savevm import Registry

__all__ = ["Arrival", "Board", "Describe", "Receive", "emit"]


class Board(Protocol):
    """A machine.  ``runstate`` is QEMU's name of what it does; ``listeners`` are told QMP events."""

    runstate: str
    listeners: list[Callable[[str, dict[str, Any]], None]]

    @property
    def running(self) -> bool: ...

    def stop(self) -> None: ...

    def resume(self) -> None: ...

    def set_runstate(self, name: str) -> None: ...


class Arrival(Protocol):
    """A machine's state as it comes in: ``apply`` has the machine take it over, all or nothing.

    ``release`` is the QEMU release whose layouts it has; ``runstate`` what the machine did, as the
    stream says, and ``warnings`` are lines for people, both after ``apply``, which raises
    ``StreamError`` or ``ValueError`` to refuse the state.
    """

    @property
    def registry(self) -> Registry: ...

    @property
    def release(self) -> str: ...

    @property
    def runstate(self) -> str: ...

    @property
    def warnings(self) -> list[str]: ...

    def apply(self) -> None: ...


# The machine's registry, in the layouts of a release, without what is named, and with what gives the
# runstate that is saved.
Describe = Callable[[str, Sequence[str], Callable[[], str]], Registry]
Receive = Callable[[], Arrival]


def emit(board: Board, event: str, **data: Any) -> None:
    """Tell the board's listeners a QMP event."""
    for listener in list(board.listeners):
        listener(event, data)
