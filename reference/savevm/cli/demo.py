"""``savevm demo``: a guest that migrates live between machines on this computer."""

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

import click

from savevm.cli.common import CannotRun
from savevm.cli.processes import (
    OURS,
    Kind,
    Machine,
    MachineError,
    contiguous,
    find_qemus,
    migrate,
    swept,
)

__all__ = ["PARAMETERS", "WINDOW", "Leg", "demo", "guest"]

# Address and size of the window of RAM that the guest sweeps.
WINDOW: Final = (0x8010_0000, 8 << 20)
# A bandwidth at which a guest that writes 20 MB/s takes some rounds, and a downtime (in ms) that they
# come to.
PARAMETERS: Final = {"max-bandwidth": 60 << 20, "downtime-limit": 10}
# Releases of QEMU whose layouts the reference writes.
LAYOUTS: Final = ("5.2", "7.2", "10.0", "11.1")

Told = Callable[[dict[str, Any]], None]


@dataclass
class Leg:
    """A migration: ``rounds`` over RAM, ``pages`` sent in all and of those ``again``, ``mbps`` in
    10**6 bits/s, times in ms.  ``wrong`` is what was found afterwards, empty where all was right."""

    source: str
    destination: str
    rounds: int = 0
    pages: int = 0
    again: int = 0
    mbps: float = 0.0
    total: int = 0
    downtime: int = 0
    wrong: str = ""


@contextlib.contextmanager
def guest(
    start: int = WINDOW[0], size: int = WINDOW[1], rate: int = 20_000_000
) -> Iterator[tuple[str, ...]]:
    """Options of a machine that runs the sweeper, at ``rate`` bytes of pages per second."""
    with as_file(files("savevm.machine") / "guests" / "sweeper.elf") as elf:
        append = f"start={start:#x} end={start + size:#x} rate={rate}"
        yield ("-kernel", str(elf), "-append", append)


def release_for(destination: Kind) -> str:
    """Whose layouts the reference is to write: the destination's, else the newest ones that it reads."""
    known = [release for release in LAYOUTS if _number(release) <= _number(destination.release)]
    return destination.release if destination.release in LAYOUTS else (known or LAYOUTS)[-1]


def _number(release: str) -> list[int]:
    return [int(part) for part in release.split(".")] if release else [999]


async def legs(
    way: Sequence[Kind], directory: Path, memory: str, told: Callable[[Leg], Told]
) -> AsyncIterator[Leg]:
    """The guest goes the ``way``, one machine to the next, and is looked at in each.

    Raises ``MachineError``.
    """
    letters = ""
    async with AsyncExitStack() as machines:
        with guest() as options:
            board = ("-m", memory, *options)
            there = await machines.enter_async_context(Machine.started(way[0], directory, *board))
            await asyncio.sleep(1.0)
            for kind in way[1:]:
                here = there
                there = await machines.enter_async_context(
                    Machine.started(kind, directory, *board, "-incoming", "defer")
                )
                leg = Leg(here.kind.name, kind.name)
                parameters: dict[str, Any] = dict(PARAMETERS)
                if here.kind is OURS:
                    parameters["x-release"] = release_for(kind)
                try:
                    statistics = await migrate(here, there, told(leg), **parameters)
                except MachineError as error:
                    leg.wrong = str(error)
                    yield leg
                    return
                _fill(leg, statistics)
                letters += here.letters()
                await here.end()
                await asyncio.sleep(0.7)
                await there.execute("stop")
                leg.wrong = swept(await there.memory(*WINDOW)) or contiguous(
                    letters + there.letters()
                )
                if not there.letters():
                    leg.wrong = "the guest prints nothing any more"
                await there.execute("cont")
                yield leg
                if leg.wrong:
                    return


def _fill(leg: Leg, statistics: dict[str, Any]) -> None:
    ram = statistics["ram"]
    leg.rounds = ram["dirty-sync-count"]
    leg.pages = ram["normal"] + ram["duplicate"]
    leg.again = leg.pages - ram["total"] // ram["page-size"]
    leg.mbps = round(ram["mbps"], 1)
    leg.total = statistics["total-time"]
    leg.downtime = statistics.get("downtime", 0)


@click.command(short_help="Migrate a running guest live, through every QEMU found.")
@click.option(
    "--qemu",
    "qemus",
    multiple=True,
    metavar="PATH",
    help="A qemu-system-riscv64, or a directory with one; may be repeated.  Without it, the one on "
    "PATH, if any.",
)
@click.option("--memory", default="64M", show_default=True, help="RAM of the machines.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def demo(qemus: tuple[str, ...], memory: str, as_json: bool) -> None:
    """Migrate a running guest live between machines on this computer.

    The guest counts up a byte in each page of 8 MiB, 20 MB of pages per second, and prints a letter
    whenever it has come around.  It starts in the reference's machine, goes to another one, and then
    through every QEMU and back.  In each machine its pages and letters are looked at: none may have
    been lost on the way.

    Exit codes: 0 all legs went well, 1 one did not, 2 the command could not do its work.
    """
    try:
        found = find_qemus(qemus)
    except MachineError as error:
        raise CannotRun(str(error)) from None
    way = [OURS, OURS]
    for kind in found:
        way += [kind, OURS]
    with tempfile.TemporaryDirectory(prefix="savevm-") as directory:
        done = asyncio.run(_shown(way, Path(directory), memory, quiet=as_json))
    good = len(done) == len(way) - 1 and not any(leg.wrong for leg in done)
    if as_json:
        click.echo(json.dumps({"ok": good, "legs": [asdict(leg) for leg in done]}, indent=2))
    else:
        _verdict(done, len(way) - 1, found)
    if not good:
        sys.exit(1)


async def _shown(way: Sequence[Kind], directory: Path, memory: str, *, quiet: bool) -> list[Leg]:
    """Go the way behind a progress display."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[state]}"),
    )
    console = Console(stderr=True)
    done: list[Leg] = []
    with Progress(*columns, console=console, disable=quiet, refresh_per_second=20) as progress:

        def told(leg: Leg) -> Told:
            task = progress.add_task(f"{leg.source} → {leg.destination}", total=1, state="")

            def tell(statistics: dict[str, Any]) -> None:
                progress.update(task, **_state(statistics))

            return tell

        try:
            async for leg in legs(way, directory, memory, told):
                done.append(leg)
                if leg.wrong:
                    console.print(f"[red]{leg.source} → {leg.destination}:[/] {leg.wrong}")
        except MachineError as error:
            raise CannotRun(str(error)) from None
    return done


def _state(statistics: dict[str, Any]) -> dict[str, Any]:
    ram = statistics["ram"]
    sent = f"round {ram['dirty-sync-count']:2}, {ram['mbps'] / 8:6.1f} MB/s"
    if statistics["status"] == "completed":
        again = ram["normal"] + ram["duplicate"] - ram["total"] // ram["page-size"]
        state = f"{sent}, {again} pages again, {statistics.get('downtime', 0)} ms down"
    else:
        left = f"{ram['remaining'] / 1e6:5.1f} MB left"
        state = f"{sent}, {left}, {ram['dirty-pages-rate']} dirty pages/s"
    return {"completed": 1 - ram["remaining"] / ram["total"], "state": state}


def _verdict(done: list[Leg], wanted: int, found: list[Kind]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    table.add_column("", no_wrap=True)
    for name in ("rounds", "pages", "again", "Mbit/s", "ms", "down"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("guest", no_wrap=True)
    for leg in done:
        numbers = (leg.rounds, leg.pages, leg.again, leg.mbps, leg.total, leg.downtime)
        verdict = "[red]wrong[/]" if leg.wrong else "[green]whole[/]"
        table.add_row(f"{leg.source} → {leg.destination}", *map(str, numbers), verdict)
    console = Console()
    console.print(table)
    if len(done) < wanted or any(leg.wrong for leg in done):
        console.print(f"[red]{wanted - sum(not leg.wrong for leg in done)} of {wanted} legs failed")
    else:
        console.print(f"[green]all {wanted} legs went well[/]")
    if not found:
        console.print("no QEMU was found: --qemu PATH names one")
