"""``savevm extract``: a stream's contents as files."""

import json
import os
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

import savevm
from savevm.cli.common import CannotRun, Problems, fed, opened, size, snapshot_option
from savevm.extract import BlockFiles
from savevm.source import Source
from savevm.stream.events import (
    AttributesWord,
    Configuration,
    Device,
    Event,
    HtabChunk,
    HtabHeader,
    RecordBody,
    Section,
)
from savevm.stream.reader import Reader
from savevm.transcript import jsonable
from savevm.vmstate import by_name


def _file_name(idstr: str) -> str:
    """A file name for an idstr: never a path, and reversible unless that would be too long."""
    name = quote(idstr, safe=" :@+=,~()", encoding="latin-1")
    if len(name) > 200:
        name = name[:160] + "%" + sha256(idstr.encode("latin-1")).hexdigest()[:32]
    return "%2E" + name[1:] if name.startswith(".") else name


class _Files:
    """The files of a directory.  ``refused`` says which the system did not let be written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.blocks: dict[str, str | None] = {}
        self.disks: dict[str, str | None] = {}
        self.records: list[str | None] = []
        self.refused: list[str] = []
        self._disk_fds: dict[str, int] = {}

    def _open(self, name: str, size: int) -> int:
        path = self.directory / name
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            path.parent.mkdir(exist_ok=True)
            fd = os.open(path, flags, 0o600)
        except OSError as e:
            self.refused.append(f"{path}: {e.strerror}")
            return -1
        if not self._resize(path, fd, size):
            os.close(fd)
            return -1
        return fd

    def _resize(self, path: Path, fd: int, size: int) -> bool:
        """Whether the file has ``size`` bytes now; if it cannot have, it is removed."""
        try:
            os.ftruncate(fd, size)
        except (OSError, OverflowError):
            path.unlink()
            self.refused.append(f"{path}: the file system has no files of {size} bytes")
            return False
        return True

    def open_block(self, name: str, used_length: int) -> int:
        file = f"ram/{_file_name(name)}.raw"
        fd = self._open(file, used_length)
        self.blocks[name] = file if fd >= 0 else None
        return fd

    def open_record(self, idstr: str, instance_id: int) -> int:
        file = f"records/{len(self.records):03}.{_file_name(idstr)}.{instance_id}.raw"
        fd = self._open(file, 0)
        self.records.append(file if fd >= 0 else None)
        return fd

    def open_disk(self, device: str) -> int:
        file = f"disk/{_file_name(device)}.raw"
        fd = self._open(file, 0)
        self.disks[device] = file if fd >= 0 else None
        self._disk_fds[device] = fd
        return fd

    def extend_disk(self, device: str, size: int) -> bool:
        path = self.directory / f"disk/{_file_name(device)}.raw"
        if self._resize(path, self._disk_fds[device], size):
            return True
        self.disks[device] = None
        return False

    def write_json(self, name: str, value: object) -> None:
        part = self.directory / f".{name}.part"
        part.write_text(json.dumps(value, indent=1) + "\n")
        part.replace(self.directory / name)


class _Devices:
    """Everything in a stream that is not RAM, as JSON."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._section: Section | None = None

    def take(self, event: Event) -> None:
        match event:
            case Section():
                self._section = event
            case RecordBody():
                assert self._section is not None
                whole = event.length == self._section.body_length
                kind = "record" if whole else "rest"
                self._add(kind, event.offset, length=event.length)
            case Device(kind="vmstate"):
                state = by_name(jsonable(event.state))
                self._add(event.kind, event.offset, length=event.length, state=state)
            case Device():
                data = event.raw.hex()
                self._add(event.kind, event.offset, length=event.length, data=data)
            case HtabHeader():
                self._add("htab", event.offset, header=event.header, chunks=[])
            case HtabChunk():
                chunk = [event.index, event.valid, event.invalid, event.entries.hex()]
                self.entries[-1]["chunks"].append(chunk)
            case AttributesWord(data=data) if data:
                self._add(
                    "storage-attributes", event.offset, address=event.address, data=data.hex()
                )

    def _add(self, kind: str, offset: int, **values: object) -> None:
        assert self._section is not None
        self.entries.append(
            {
                "idstr": self._section.idstr,
                "instance_id": self._section.instance_id,
                "version_id": self._section.version_id,
                "kind": kind,
                "offset": offset,
                **values,
            }
        )


def _extract(source: Source, files: _Files) -> tuple[dict[str, Any], Problems]:
    sink = BlockFiles(files.open_block, files.open_record, files.open_disk, files.extend_disk)
    reader = Reader(description=source.description(), searched=source.size is not None, sink=sink)
    problems = Problems()
    devices = _Devices()
    manifest: dict[str, Any] = {"savevm": savevm.__version__, "source": source.name}
    manifest["envelope"] = source.envelope.jsonable() if source.envelope else None

    try:
        for _, events in fed(source, reader, problems):
            for event in events:
                devices.take(event)
                if isinstance(event, Configuration):
                    manifest["machine"] = event.machine
    finally:
        sink.close()
    for name in reader.blocks:
        if name not in files.blocks and (fd := files.open_block(name, reader.blocks[name])) >= 0:
            os.close(fd)
    for entry, file in zip(
        (e for e in devices.entries if e["kind"] in ("record", "rest")), files.records, strict=True
    ):
        entry["file"] = file
    manifest["complete"] = problems.error is None and not files.refused
    manifest["page_size"] = reader.page_size
    manifest["ram"] = [
        {"idstr": name, "used_length": used, "file": files.blocks[name]}
        for name, used in reader.blocks.items()
    ]
    manifest["disks"] = [{"device": device, "file": file} for device, file in files.disks.items()]
    manifest["devices"] = len(devices.entries)
    manifest["problems"] = problems.entries
    files.write_json("devices.json", devices.entries)
    files.write_json("manifest.json", manifest)
    return manifest, problems


@click.command()
@click.argument("file")
@snapshot_option
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
def extract(file: str, snapshot: str | None, output: Path, force: bool, as_json: bool) -> None:
    """Write RAM blocks and device states to files.

    FILE is a path, or - for standard input.  DIR then has ram/BLOCK.raw, one sparse file for each
    RAM block, with block names percent-encoded (ram.raw is all RAM where streams had no block
    names, until 0.12); disk/DEVICE.raw, what a block migration carried of a disk; records/, what is
    not decoded of a stream of version 1 or 2; devices.json, all the rest in stream order; and
    manifest.json, which says what belongs to what.  A broken stream gives all that could be read,
    and exit code 1.
    """
    files = _Files(output)
    with opened(file, snapshot) as source:
        if output.is_dir() and any(output.iterdir()) and not force:
            raise CannotRun(f"{output} is not empty (--force writes all the same)")
        output.mkdir(parents=True, exist_ok=True)
        manifest, problems = _extract(source, files)
    if as_json:
        click.echo(json.dumps(manifest))
    else:
        for block in manifest["ram"]:
            if block["file"] is not None:
                click.echo(f"{output / block['file']}: {size(block['used_length'])}")
        for disk in manifest["disks"]:
            if disk["file"] is not None:
                click.echo(
                    f"{output / disk['file']}: {size((output / disk['file']).stat().st_size)}"
                )
        click.echo(f"{output / 'devices.json'}: {manifest['devices']} devices")
        for text in problems.lines(file):
            click.echo(text, err=True)
    if files.refused:
        raise CannotRun("\n".join(files.refused))
    sys.exit(1 if problems.broken else 0)
