"""A machine without a processor that migrates: its guest sweeps over the pages of its RAM."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from savevm.migration.incoming import Incoming
from savevm.migration.outgoing import Outgoing
from savevm.migration.settings import Settings
from savevm.ram import RamBlock
from savevm.savevm import Device, Ram, Registry

PAGE = 4096


class Cpu(Device):
    """Where the guest is, and what the machine does."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__("cpu", version_id=1)
        self.state = state

    def layout(self, version_id: int) -> dict[str, Any]:
        fields = [
            {"name": "page", "type": "int64", "size": 8},
            {"name": "sweep", "type": "int64", "size": 8},
            {"name": "runstate", "type": "buffer", "size": 100},
        ]
        return {"vmsd_name": "cpu", "version": 1, "fields": fields}

    def save(self) -> Any:
        runstate = self.state["runstate"].encode().ljust(100, b"\0")
        fields = [["page", self.state["page"]], ["sweep", self.state["sweep"]]]
        return {"fields": [*fields, ["runstate", runstate]], "subsections": []}

    def load(self, state: Any, version_id: int) -> None:
        values = dict(state["fields"])
        if values["page"] < 0:
            raise ValueError("page below 0")
        self.state = {**values, "runstate": values["runstate"].rstrip(b"\0").decode()}


class Mover:
    """The machine.  ``pace`` is how many pages its guest writes in a millisecond."""

    def __init__(self, pages: int = 512, *, pace: int = 20, runstate: str = "running") -> None:
        self.block = RamBlock("mover.ram", pages * PAGE)
        self.runstate = runstate
        self.listeners: list[Callable[[str, dict[str, Any]], None]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.listeners.append(lambda event, data: self.events.append((event, data)))
        self.pace = pace
        self.page = 0
        self.sweep = 0

    @property
    def running(self) -> bool:
        return self.runstate == "running"

    def stop(self) -> None:
        assert self.running
        self.set_runstate("paused")
        self._tell("STOP")

    def resume(self) -> None:
        assert not self.running
        self.set_runstate("running")
        self._tell("RESUME")

    def set_runstate(self, name: str) -> None:
        self.runstate = name

    def _tell(self, event: str) -> None:
        for listener in self.listeners:
            listener(event, {})

    def work(self, pages: int) -> None:
        """Count up the first word of that many pages, and fill some of the rest."""
        for _ in range(pages):
            word = struct.pack("<Q", self.sweep + 1)
            self.block.write(self.page * PAGE, word * (1 + self.page % 512))
            self.page += 1
            if self.page == self.block.pages:
                self.page, self.sweep = 0, self.sweep + 1

    async def live(self) -> None:
        """Run for ever."""
        while True:
            if self.running:
                self.work(self.pace)
            await asyncio.sleep(0.001)

    def check(self) -> None:
        """Every page was counted up as often as the guest has come by."""
        for page in range(self.block.pages):
            count = self.sweep + (page < self.page)
            word = struct.pack("<Q", count)
            size = 8 * (1 + page % 512) if count else 8
            at = page * PAGE
            assert bytes(self.block.view[at : at + size]) == word * (size // 8), page

    def registry(self, release: str, drop: Sequence[str], runstate: Callable[[], str]) -> Registry:
        registry = Registry()
        registry.register(Ram([self.block]))
        mover = self

        class Now(Cpu):
            def save(self) -> Any:
                self.state = {"page": mover.page, "sweep": mover.sweep, "runstate": runstate()}
                return super().save()

        registry.register(Now({}))
        return registry

    def arrival(self) -> "Arrival":
        return Arrival(self)


class Arrival:
    release = "11.1"

    def __init__(self, mover: Mover) -> None:
        self.mover = mover
        self.registry = Registry()
        self.registry.register(Ram([mover.block]))
        self.cpu = Cpu({})
        self.registry.register(self.cpu)
        self.warnings: list[str] = []
        self.runstate = ""

    def apply(self) -> None:
        if not self.cpu.state:
            raise ValueError("no state of the cpu has come")
        self.mover.page = self.cpu.state["page"]
        self.mover.sweep = self.cpu.state["sweep"]
        self.runstate = self.cpu.state["runstate"]


def outgoing(board: Mover, settings: Settings | None = None, **options: Any) -> Outgoing:
    options.setdefault("machine_name", "mover")
    return Outgoing(board, settings or told(), board.registry, **options)


def incoming(board: Mover, settings: Settings | None = None, **options: Any) -> Incoming:
    options.setdefault("machine_name", "mover")
    return Incoming(board, settings or told(), board.arrival, **options)


def told(*capabilities: str, **parameters: object) -> Settings:
    """Settings with these; hyphens in names are underscores."""
    settings = Settings()
    settings.set_capabilities(dict.fromkeys(("events", *capabilities), True))
    settings.set_parameters({n.replace("_", "-"): v for n, v in parameters.items()})
    return settings


@contextlib.asynccontextmanager
async def living(*movers: Mover) -> AsyncIterator[None]:
    """While this lasts, the guests of the machines run if these do."""
    tasks = [asyncio.create_task(mover.live()) for mover in movers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
