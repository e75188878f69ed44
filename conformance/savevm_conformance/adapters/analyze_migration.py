"""QEMU's ``scripts/analyze-migration.py``.

``python -m savevm_conformance.adapters.analyze_migration SCRIPT``.  A stream is accepted that the
script shows (``-d state``); RAM is what it extracts then (``-x``).
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

from savevm_conformance.protocol.serve import serve

__all__ = ["Script"]

_FEATURES: Final = (
    "configuration",
    "footers",
    "ram-4",
    "page-size",
    "htab",
    "vmdesc",
    "vmstate",
)
# What only later ones know, by what is in them.
_LATER: Final = {"commands": b"QEMU_VM_COMMAND", "storage-attributes": b"s390-storage_attributes"}
# Where a description may be: there has to be one.
_DESCRIPTION: Final = re.compile(rb"\x06.{4}\{", re.DOTALL)
_DETAIL: Final = 300


class Script:
    """The script of some release.

    Raises:
        ValueError: it is not that script.
    """

    def __init__(self, path: Path) -> None:
        self._path: Final = path.absolute()
        try:
            text = self._path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from error
        if b"QEMU_VM_VMDESCRIPTION" not in text:
            raise ValueError(f"{path}: not analyze-migration.py")
        # The tree of QEMU says of which release it is; the script does not.
        release = self._path.parent.parent / "VERSION"
        self.version: Final = (
            release.read_text("utf-8").strip()
            if release.is_file()
            else f"sha256-{hashlib.sha256(text).hexdigest()[:12]}"
        )
        later = tuple(feature for feature, word in _LATER.items() if word in text)
        self.features: Final = _FEATURES + later

    def reader(self, case: dict[str, Any]) -> dict[str, Any]:
        """What the script makes of a stream."""
        if not _DESCRIPTION.search(Path(case["stream"]).read_bytes()):
            return {"outcome": "skip", "why": "it takes only streams with a description"}
        with tempfile.TemporaryDirectory(prefix="savevm-analyze-") as directory:
            shown = self._run(directory, case["stream"], "-d", "state")
            if shown.returncode:
                return _failed(shown)
            blocks = _blocks(json.loads(shown.stdout))
            # It writes to files that are called like the blocks.
            if any(".." in PurePosixPath(name).parts for name in blocks):
                return {"outcome": "accept"}
            if blocks:
                extracted = self._run(directory, case["stream"], "-x")
                if extracted.returncode:
                    print("-x:", _why(extracted), file=sys.stderr)
                    return {"outcome": "accept"}
            return {"outcome": "accept", "ram": _extracted(directory, blocks)}

    def _run(self, directory: str, stream: str, *how: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-X", "utf8", str(self._path), "-f", stream, *how],
            cwd=directory,
            capture_output=True,
            check=False,
        )


def _why(process: subprocess.CompletedProcess[bytes]) -> str:
    lines = process.stderr.decode("utf-8", "replace").splitlines()
    # What it raises at last shows the description, what it raised first says why.
    first = (line for line in lines if line and not line.startswith((" ", "Traceback")))
    return next(first, f"exit code {process.returncode}")[:_DETAIL]


def _failed(process: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    why = _why(process)
    if process.returncode < 0:
        return {"outcome": "crash", "why": f"signal {-process.returncode}: {why}"}
    if why.startswith("MemoryError"):
        return {"outcome": "memory", "why": why}
    return {"outcome": "reject", "detail": why}


def _blocks(state: dict[str, Any]) -> list[str]:
    """The names of the RAM blocks in what is shown."""
    return [
        name
        for section in state.values()
        if isinstance(section, dict)
        for name in section.get("section sizes", ())
    ]


def _extracted(directory: str, blocks: list[str]) -> dict[str, str]:
    """The digests of blocks that were extracted."""
    if not blocks:
        return {}
    size = json.loads(Path(directory, "desc.json").read_text("utf-8"))["page_size"]
    # The name of a block may begin with a slash.
    return {name: _digest(Path(f"{directory}/{name}"), size) for name in blocks}


def _digest(file: Path, page_size: int) -> str:
    digest = hashlib.sha256()
    for at, page in _pages(file, page_size):
        if any(page):
            digest.update(at.to_bytes(8, "big") + page)
    return digest.hexdigest()


def _pages(path: Path, size: int) -> Iterator[tuple[int, bytes]]:
    """The pages of a file that is mostly holes, without those in them."""
    with path.open("rb", buffering=0) as file:
        at, end = 0, file.seek(0, os.SEEK_END)
        while at < end:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // size * size
            except OSError:
                return
            yield at, os.pread(file.fileno(), size, at)
            at += size


if __name__ == "__main__":
    try:
        script = Script(Path(sys.argv[1]))
    except (IndexError, ValueError) as error:
        sys.exit(f"analyze-migration: {error}")
    serve(
        "analyze-migration",
        script.version,
        {"reader": script.reader},
        features=script.features,
        says=("ram",),
        url="https://gitlab.com/qemu-project/qemu/-/blob/master/scripts/analyze-migration.py",
    )
