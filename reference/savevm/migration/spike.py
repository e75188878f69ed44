"""The board "spike" as migrations see it."""

from collections.abc import Callable, Sequence
from typing import Final

from savevm.machine import layouts
from savevm.machine.memory import GuestRam
from savevm.machine.spike import Spike
from savevm.machine.state import MachineState
from savevm.migration.board import Describe
from savevm.savevm import Registry

__all__ = ["Arrival", "describer"]


class _Saved:
    """The board as it is saved: its runstate is that apart from being migrated."""

    def __init__(self, board: Spike, runstate: Callable[[], str]) -> None:
        self.ram: Final[GuestRam] = board.ram
        self.mrom: Final[GuestRam] = board.mrom
        self._board: Final = board
        self._runstate: Final = runstate

    def state(self) -> MachineState:
        state = self._board.state()
        state.runstate = self._runstate()
        return state

    def adopt(self, state: MachineState) -> None:
        self._board.adopt(state)


def describer(board: Spike) -> Describe:
    """What describes ``board`` to a stream in the layouts of a release."""

    def describe(release: str, drop: Sequence[str], runstate: Callable[[], str]) -> Registry:
        return layouts.registry(_Saved(board, runstate), release, drop)

    return describe


class Arrival:
    """What takes in a stream of any release for ``board``, and may lose what ``drop`` names."""

    def __init__(self, board: Spike, drop: Sequence[str] = ()) -> None:
        self.registry: Final = layouts.Incoming(board, drop)
        self._before: Final = self.registry.state.runstate

    @property
    def release(self) -> str:
        """Whose layouts came."""
        return self.registry.release

    @property
    def runstate(self) -> str:
        """What the machine did; empty where the stream does not say."""
        now = self.registry.state.runstate
        return "" if now == self._before else now

    @property
    def warnings(self) -> list[str]:
        """Lines for people."""
        return [f"{name} was dropped" for name in self.registry.dropped]

    def apply(self) -> None:
        """Have the board take over what has come; raises ``ValueError``."""
        self.registry.apply()
