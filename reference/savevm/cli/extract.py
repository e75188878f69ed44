"""``savevm extract``: a stream's contents as files."""

import json
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

import savevm
from savevm.cli.common import CannotRun, Problems, chunks, opened, size
from savevm.extract import BlockFiles
from savevm.source import Source
from savevm.stream.events import Configuration, Device, Event, Section
from savevm.stream.reader import Reader
from savevm.transcript import jsonable
from savevm.vmstate import by_name


def _file_name(idstr: str) -> str:
    """A file name for an idstr: reversible, and never a path."""
    name = quote(idstr, safe=" :@+=,~()", encoding="latin-1")
    return "%2E" + name[1:] if name.startswith(".") else name


class _Files:
    """The block files of a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.names: dict[str, str] = {}

    def open(self, name: str, used_length: int) -> int:
        self.names[name] = f"ram/{_file_name(name)}.raw"
        fd = os.open(
            self.directory / self.names[name],
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC,
            0o600,
        )
        try:
            os.ftruncate(fd, used_length)
        except (OSError, OverflowError):
            os.close(fd)
            raise CannotRun(f"no file of {used_length} bytes for block {name!r}") from None
        return fd


def _device(section: Section, event: Device) -> dict[str, Any]:
    device: dict[str, Any] = {
        "idstr": section.idstr,
        "instance_id": section.instance_id,
        "version_id": section.version_id,
        "kind": event.kind,
        "offset": event.offset,
        "length": event.length,
    }
    if event.kind == "vmstate":
        device["state"] = by_name(jsonable(event.state))
    else:
        device["data"] = event.raw.hex()
    return device


def _extract(
    source: Source, directory: Path
) -> tuple[dict[str, Any], list[dict[str, Any]], Problems]:
    files = _Files(directory)
    sink = BlockFiles(files.open)
    reader = Reader(description=source.description(), sink=sink)
    problems = Problems()
    devices: list[dict[str, Any]] = []
    manifest: dict[str, Any] = {"savevm": savevm.__version__, "source": source.name}
    section: Section | None = None

    def take(events: list[Event]) -> None:
        nonlocal section
        problems.read(events)
        for event in events:
            if isinstance(event, Section):
                section = event
            elif isinstance(event, Device) and section is not None:
                devices.append(_device(section, event))
            elif isinstance(event, Configuration):
                manifest["machine"] = event.machine

    try:
        for chunk in chunks(source):
            take(reader.feed(chunk))
            if reader.error is not None:
                break
        take(reader.finish())
    finally:
        sink.close()
    for name in reader.blocks:
        if name not in files.names:
            os.close(files.open(name, reader.blocks[name]))
    problems.end(reader)
    manifest["complete"] = reader.error is None
    manifest["page_size"] = reader.page_size
    manifest["ram"] = [
        {"idstr": name, "used_length": used, "file": files.names[name]}
        for name, used in reader.blocks.items()
    ]
    manifest["problems"] = problems.entries
    return manifest, devices, problems


@click.command()
@click.argument("file")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where to write; made if it is not there.",
)
@click.option("-f", "--force", is_flag=True, help="Write even if DIR has something in it.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
def extract(file: str, output: Path, force: bool, as_json: bool) -> None:
    """Write RAM blocks and device states to files.

    FILE is a path, or - for standard input.  DIR then has ram/BLOCK.raw, one sparse file for each
    RAM block, with block names percent-encoded; devices.json, the device states in stream order;
    and manifest.json, which says what belongs to what.  A broken stream gives all that could be
    read, and exit code 1.
    """
    with opened(file) as source:
        if output.is_dir() and any(output.iterdir()) and not force:
            raise CannotRun(f"{output} is not empty (--force writes all the same)")
        (output / "ram").mkdir(parents=True, exist_ok=True)
        manifest, devices, problems = _extract(source, output)
        (output / "devices.json").write_text(json.dumps(devices, indent=1) + "\n")
        (output / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    if as_json:
        click.echo(json.dumps(manifest))
    else:
        for block in manifest["ram"]:
            click.echo(f"{output / block['file']}: {size(block['used_length'])}")
        click.echo(f"{output / 'devices.json'}: {len(devices)} devices")
        for text in problems.lines(file):
            click.echo(text, err=True)
    sys.exit(0 if manifest["complete"] else 1)
