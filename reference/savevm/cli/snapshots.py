"""``savevm snapshots``: the snapshots in a disk image."""

import json
import sys
from datetime import UTC, datetime
from typing import Any

import click

from savevm.cli.common import CannotRun, line, problem, shown, size
from savevm.errors import StreamError
from savevm.qcow2 import Image, Snapshot

_COLUMNS = ("ID", "TAG", "VM STATE", "DATE (UTC)", "VM CLOCK")
_KEYS = ("id", "name", "vm_state_size", "disk_size", "date", "vm_clock", "icount")


def _json(snapshot: Snapshot) -> dict[str, Any]:
    return {key: getattr(snapshot, key) for key in _KEYS}


def _clock(nanoseconds: int) -> str:
    milliseconds = nanoseconds // 10**6
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}.{milliseconds:03}"


def _row(snapshot: Snapshot) -> tuple[str, ...]:
    date = datetime.fromtimestamp(snapshot.date // 10**9, UTC)
    return (
        shown(snapshot.id),
        shown(snapshot.name),
        size(snapshot.vm_state_size) if snapshot.vm_state_size else "-",
        date.strftime("%Y-%m-%d %H:%M:%S"),
        _clock(snapshot.vm_clock),
    )


@click.command()
@click.argument("image")
@click.option("--delete", "tag", metavar="TAG", help="Delete the snapshot of this name, or id.")
@click.option(
    "-U",
    "--force-share",
    is_flag=True,
    help="List the snapshots even if another process writes the image.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def snapshots(image: str, tag: str | None, force_share: bool, as_json: bool) -> None:
    """List the internal snapshots in a qcow2 image, or delete one.

    Sizes in JSON are bytes, dates nanoseconds since the Epoch, clocks nanoseconds of guest time.
    After deleting, those that are left are listed.  An image that breaks a rule gives exit code 1.
    """
    if tag is not None and force_share:
        raise click.UsageError("nothing is deleted while another process writes the image")
    try:
        with Image(image, writable=tag is not None, locked=not force_share) as opened:
            if tag is not None:
                opened.delete(opened.find(tag))
            found = opened.snapshots()
    except StreamError as e:
        broken = problem(e.rule, e.offset, e.section, e.detail)
        click.echo(line(image, broken), err=True)
        sys.exit(1)
    except OSError as e:
        raise CannotRun(f"{shown(image)}: {e.strerror or e}") from None
    if as_json:
        click.echo(json.dumps([_json(snapshot) for snapshot in found]))
        return
    rows = [_COLUMNS, *map(_row, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if found else []:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
