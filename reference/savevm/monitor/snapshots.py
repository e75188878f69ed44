"""Snapshots of the whole machine in a disk image: what savevm, loadvm and delvm do."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from savevm.channel import Channel, ChannelError
from savevm.errors import StreamError
from savevm.monitor.qmp import CommandError, describe
from savevm.qcow2 import Image, Snapshot
from savevm.savevm import CannotExpressError, Format, LoadError, load, save
from savevm.transport.disk_image import StateInput, StateOutput

if TYPE_CHECKING:
    from savevm.monitor.emulator import Emulator

__all__ = ["Drive", "delete", "listed", "restore", "take"]

_TICK: Final = 100  # ns of mtime


@dataclass(frozen=True, slots=True)
class Drive:
    """A qcow2 image, with the name by which QEMU would know it."""

    id: str
    path: str


def _drive(emulator: "Emulator") -> Drive:
    """Where snapshots are."""
    if not emulator.drives:
        raise CommandError("no block device can store vmstate for snapshot")
    return emulator.drives[0]


def _check_still(emulator: "Emulator") -> None:
    """Raise ``CommandError`` while the machine comes or goes."""
    if emulator.board.runstate == "inmigrate":
        raise CommandError("Guest is waiting for an incoming migration")
    if emulator.migrating:
        raise CommandError("There's a migration process in progress")


def take(emulator: "Emulator", tag: str | None) -> None:
    """Make the snapshot ``tag``, in the place of one that has the name; raises ``CommandError``."""
    drive = _drive(emulator)
    board = emulator.board
    _check_still(emulator)
    name = tag if tag else f"vm-{datetime.now():%Y%m%d%H%M%S}"
    before = board.runstate
    running = board.running
    try:
        registry = emulator.describe(emulator.release, emulator.settings.drop, lambda: before)
        output = StateOutput(drive.path, name, replace=True, vm_clock=board.clock.mtime() * _TICK)
    except (StreamError, OSError, ValueError) as error:
        raise CommandError(_plain(error)) from error
    if running:
        board.stop()
        board.set_runstate("save-vm")
    try:
        channel = Channel(output)
        save(registry, channel, Format(machine="spike"))
        if channel.close() < 0:
            raise CommandError(f"Error while writing VM state: {output.reason}")
    except (ChannelError, CannotExpressError, ValueError) as error:
        output.abandon()
        raise CommandError(f"Error while writing VM state: {output.reason or error}") from error
    finally:
        if running:
            board.resume()
        else:
            board.set_runstate(before)


def restore(emulator: "Emulator", tag: str) -> None:
    """Go on from the snapshot ``tag``, if the machine ran; raises ``CommandError``.

    What cannot be loaded leaves the machine stopped.
    """
    drive = _drive(emulator)
    board = emulator.board
    _check_still(emulator)
    try:
        source = StateInput(drive.path, tag)
    except FileNotFoundError as error:
        raise CommandError(
            f"Snapshot '{tag}' does not exist in one or more devices"
            if error.filename == drive.path
            else _plain(error)
        ) from error
    except (StreamError, OSError) as error:
        raise CommandError(_plain(error)) from error
    before = board.runstate
    running = board.running
    if running:
        board.stop()
    board.set_runstate("restore-vm")
    channel = Channel(source)
    try:
        arrival = emulator.receive()
        load(arrival.registry, channel, machine_name="spike")
        arrival.apply()
    except (LoadError, StreamError, ValueError) as error:
        raise CommandError(f"Error while loading VM state: {source.broken or error}") from error
    finally:
        channel.close()
    emulator.arrived_release = arrival.release
    if running:
        board.resume()
    else:
        board.set_runstate(before)


def delete(emulator: "Emulator", tag: str) -> None:
    """Delete the snapshot ``tag``, if there is one; raises ``CommandError``."""
    drive = _drive(emulator)
    try:
        with Image(drive.path, writable=True) as image:
            try:
                found = image.find(tag)
            except FileNotFoundError:
                return
            image.delete(found)
    except (StreamError, OSError) as error:
        raise CommandError(_plain(error)) from error


def listed(emulator: "Emulator") -> list[Snapshot]:
    """The snapshots there are; raises ``CommandError``."""
    try:
        with Image(_drive(emulator).path, locked=False) as image:
            return image.snapshots()
    except (StreamError, OSError) as error:
        raise CommandError(_plain(error)) from error


_HEAD: Final = "ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT"


def table(snapshots: list[Snapshot]) -> str:
    """As QEMU lists snapshots with VM state."""
    whole = [snapshot for snapshot in snapshots if snapshot.vm_state_size]
    if not whole:
        return "There is no snapshot available.\n"
    lines = ["List of snapshots present on all disks:", _HEAD]
    for snapshot in whole:
        date = datetime.fromtimestamp(snapshot.date // 10**9, UTC).astimezone()
        seconds, rest = divmod(snapshot.vm_clock, 10**9)
        clock = f"{seconds // 3600:04}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest // 10**6:03}"
        icount = "--" if snapshot.icount is None else str(snapshot.icount)
        lines.append(
            f"{'--':<7} {snapshot.name:<16} {size(snapshot.vm_state_size):>8} "
            f"{date:%Y-%m-%d %H:%M:%S} {clock:>15} {icount:>10}"
        )
    return "\n".join(lines) + "\n"


def size(count: int) -> str:
    """Three significant digits and a binary unit, as QEMU gives sizes."""
    unit = 0
    value = float(count)
    while value >= 1000 and unit < 6:
        value /= 1024
        unit += 1
    return f"{value:.3g} {('', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi', 'Ei')[unit]}B"


def _plain(error: Exception) -> str:
    return describe(error) if isinstance(error, OSError) else str(error)
