"""What fuzzing has found: streams with the verdict that both of our implementations agreed on.

``vectors/found`` has them, and ``found.toml`` what is declared of each.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from savevm_conformance.generate.model import Accepted, Finding, Rejected, Vector
from savevm_conformance.locate import vectors_directory
from savevm_conformance.wire import Wire


def founds() -> Iterator[Vector]:
    """The vectors that were found.

    Raises:
        OSError, ValueError: one is not as it should be.
    """
    directory = vectors_directory() / "found"
    listed = directory / "found.toml"
    if not listed.is_file():
        return
    for entry in tomllib.loads(listed.read_text("utf-8"))["vector"]:
        try:
            yield _vector(entry, directory)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{listed}: {error!r} in {entry.get('name')}") from error


def _vector(entry: dict[str, Any], directory: Path) -> Vector:
    area, slug = entry["name"].split("/")
    expect: Accepted | Rejected
    if "offset" in entry:
        expect = Rejected(entry["rules"][0], entry["offset"], entry.get("section"))
    else:
        findings = (Finding(f["rule"], f["offset"], f.get("section")) for f in entry["findings"])
        expect = Accepted(entry["dialect"], tuple(findings))
    return Vector(
        area=area,
        verdict=entry["verdict"],
        slug=slug,
        description=entry["description"],
        rules=tuple(entry["rules"]),
        source=entry["provenance"],
        wire=Wire((directory / entry["stream"]).read_bytes()),
        expect=expect,
        notes=entry.get("notes"),
        loader=entry.get("loader"),
        requires=tuple(entry.get("requires", ())),
    )
