#!/usr/bin/env python3
"""Packs the conformance vectors, with all that it takes to use them without Python, the same every time.

vectors_archive.py savevm-vectors.tar.gz
"""

import gzip
import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
VECTORS = ROOT / "conformance" / "vectors"
PROTOCOL = ROOT / "conformance" / "savevm_conformance" / "protocol" / "v1.json"
TEMPLATES = ROOT / "conformance" / "savevm_conformance" / "templates"
DOCUMENTS = ("protocol", "vectors", "reading", "transcript")


def members() -> Iterator[tuple[str, Path]]:
    """Names in the archive, and the files."""
    for path in sorted(VECTORS.rglob("*")):
        within = path.relative_to(VECTORS)
        if path.is_file() and within.parts[0] != "seeds" and path.suffix not in (".py", ".pyc"):
            yield f"vectors/{within}", path
    yield "protocol/v1.json", PROTOCOL
    for path in sorted(TEMPLATES.glob("adapter.*")):
        yield f"templates/{path.name}", path
    for name in DOCUMENTS:
        yield f"docs/{name}.rst", ROOT / "docs" / f"{name}.rst"
    yield "rules.toml", ROOT / "spec" / "savevm_spec" / "rules.toml"
    yield "LICENSE", ROOT / "LICENSE"


def pack(output: Path) -> None:
    """Write the archive."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, path in members():
            data = path.read_bytes()
            member = tarfile.TarInfo(f"savevm-vectors/{name}")
            member.size = len(data)
            member.mode = 0o644
            archive.addfile(member, io.BytesIO(data))
    output.write_bytes(gzip.compress(plain.getvalue(), mtime=0))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit((__doc__ or "").strip())
    Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
    pack(Path(sys.argv[1]))
