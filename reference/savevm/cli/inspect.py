"""``savevm inspect``: what is in a stream."""

import json
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, NoReturn

import click

from savevm.cli.common import (
    CannotRun,
    Problems,
    described,
    fed,
    opened,
    shown,
    size,
    snapshot_option,
)
from savevm.source import Source
from savevm.stream.reader import Reader
from savevm.transcript import Transcriber

_KINDS = {
    "opaque": "no description, delimited by its footer",
    "undelimited": "no description: reaches to the end",
    "buffer": "device's own format",
}


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int):
        return f"{value} ({value:#x})" if value > 9 else str(value)
    if isinstance(value, str):
        text = bytes.fromhex(value).rstrip(b"\0")
        shown = value if len(value) <= 64 else f"{value[:64]}… ({len(value) // 2} bytes)"
        if len(text) > 2 and text.isascii() and text.decode("ascii").isprintable():
            return f"{shown} ({text.decode('ascii')!r})"
        return shown
    return " ".join(_value(v).split(" ")[0] for v in value)


def _fields(state: dict[str, Any], indent: str) -> Iterator[str]:
    for name, value in state["fields"]:
        if isinstance(value, dict):
            yield f"{indent}{shown(name)}:"
            yield from _fields(value, indent + "  ")
        elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
            for i, element in enumerate(value):
                if isinstance(element, dict):
                    yield f"{indent}{shown(name)}[{i}]:"
                    yield from _fields(element, indent + "  ")
        else:
            yield f"{indent}{shown(name)} = {_value(value)}"
    for sub in state["subsections"]:
        yield f"{indent}subsection {shown(sub['name'])} version {sub['version']}:"
        yield from _fields(sub, indent + "  ")


def _body(body: dict[str, Any], fields: bool) -> Iterator[str]:
    kind = body["kind"]
    if kind == "ram":
        for block in body["blocks"]:
            yield f"block {shown(block['idstr'])}  {size(block['used_length'])}"
        for block, pages in body["pages"].items():
            counts = ", ".join(f"{n} {k}" for k, n in pages.items() if n)
            yield f"pages of {shown(block)}: {counts}"
        for words in ("hooks", "multifd_flushes"):
            if body[words]:
                yield f"{words.replace('_', ' ')}: {body[words]}"
        if "chunks" in body:
            yield f"compressed in {body['chunks']} chunks"
    elif kind == "block":
        for device, blocks in body["devices"].items():
            counts = ", ".join(f"{blocks[k]} {k}" for k in ("zero", "normal") if blocks[k])
            yield f"device blocks of {shown(device)}: {counts}"
        if body["progress"]:
            yield "progress: " + ", ".join(f"{percent} %" for percent in body["progress"])
    elif kind == "htab":
        entries = sum(valid for _, valid, _, _ in body["chunks"])
        yield f"hash table: header {body['header']}, {entries} entries"
    elif kind == "storage-attributes":
        count = sum(len(w.get("data", "")) // 2 for w in body["words"])
        yield f"storage attributes: {count} bytes"
    elif kind == "vmstate":
        if fields:
            yield from _fields(body, "")
        else:
            subsections = "".join(f", {shown(s['name'])}" for s in body["subsections"])
            yield f"{len(body['fields'])} fields{subsections}"
    else:
        yield _KINDS[kind]
    if "rest" in body:
        yield f"{body['rest']} bytes left in the record"


def _record(record: dict[str, Any], fields: bool) -> Iterator[str]:
    kind = record["record"]
    at = f"{record['offset']:>10}  "
    if "body" in record:
        body = record["body"]
        length = f"{body['length']} bytes" if "length" in body else "broken off"
        identity = f"id {record['section_id']}, " if "section_id" in record else ""
        yield (
            f"{at}{kind} {shown(record['idstr'])}  {identity}instance {record['instance_id']}, "
            f"version {record['version_id']}, {length}"
        )
        for text in _body(body, fields):
            yield " " * 14 + text
    elif kind == "header":
        yield f"{at}header  version {record['version']}"
    elif kind == "configuration":
        yield f"{at}configuration  machine {record['machine']!r}"
        for sub in record["subsections"]:
            value = next(v for k, v in sub.items() if k not in ("name", "version"))
            yield f"{' ' * 14}{sub['name']}: {', '.join(value) if isinstance(value, list) else value}"
    elif kind == "command":
        yield f"{at}command {record['name']}  {record['payload']}".rstrip()
    elif kind == "vmdescription":
        yield f"{at}vmdescription  {record['length']} bytes, {record['devices']} devices"
    else:
        yield f"{at}{kind}"


def _matches(record: dict[str, Any], patterns: tuple[str, ...]) -> bool:
    return "idstr" in record and any(
        fnmatchcase(record["idstr"], p) or str(record.get("section_id")) == p for p in patterns
    )


def _read(source: Source) -> tuple[dict[str, Any], Problems]:
    reader = Reader(description=source.description(), searched=source.size is not None)
    transcriber = Transcriber()
    problems = Problems()
    for _, events in fed(source, reader, problems):
        transcriber.add(events)
    result = transcriber.result(reader)
    result["envelope"] = source.envelope.jsonable() if source.envelope else None
    if (error := problems.error) is not None and error is not reader.error:
        names = ("rule", "offset", "section")
        result["error"] = {n: getattr(error, n) for n in names} | {"errno": error.errno_name}
    result["problems"] = problems.entries
    result["counts"] = problems.counts
    return result, problems


def _print_xml(source: Source) -> NoReturn:
    if source.envelope is None or (image := source.envelope.libvirt) is None:
        raise CannotRun(f"{source.name}: no save image of libvirt, so no domain XML")
    click.echo(image.domain_xml.encode("utf-8", "surrogateescape"), nl=False)
    sys.exit(0)


@click.command()
@click.argument("file")
@snapshot_option
@click.option(
    "-s",
    "--section",
    "sections",
    multiple=True,
    metavar="PATTERN",
    help="Only sections whose idstr matches the shell pattern, or with this section id; with fields.",
)
@click.option("-F", "--fields", is_flag=True, help="Show the fields of every device.")
@click.option("--xml", is_flag=True, help="Print only the domain XML of a libvirt save image.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(
    file: str,
    snapshot: str | None,
    sections: tuple[str, ...],
    fields: bool,
    xml: bool,
    as_json: bool,
) -> None:
    """Show what is in a stream.

    FILE is a path, or - for standard input: a stream, compressed or not, a save image of libvirt,
    or a disk image (qcow2) with a snapshot.  One line for each record, with its offset in the
    stream in bytes; below it RAM blocks, pages by kind, and what is known of devices.  A broken
    stream shows all that could be read, then what broke and where, and gives exit code 1.
    """
    with opened(file, snapshot) as source:
        if xml:
            _print_xml(source)
        result, problems = _read(source)
    if sections:
        result["records"] = [r for r in result["records"] if _matches(r, sections)]
    if as_json:
        click.echo(json.dumps(result))
    else:
        if not sections:
            if source.envelope is not None:
                click.echo(f"{shown(file)}: {shown(described(source.envelope))}")
            page = f", pages of {result['page_size']} bytes" if result["page_size"] else ""
            footers = {True: ", with footers", False: ", without footers", None: ""}
            click.echo(
                f"{shown(file)}: dialect {result['dialect']}{page}{footers[result['footers']]}"
            )
        for record in result["records"]:
            for text in _record(record, fields or bool(sections)):
                click.echo(text)
        for text in problems.lines(file):
            click.echo(text, err=True)
    if sections and not result["records"] and result["error"] is None:
        raise CannotRun(f"no section matches {' '.join(sections)}")
    sys.exit(1 if problems.broken else 0)
