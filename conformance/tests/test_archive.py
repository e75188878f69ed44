"""The archive of the vectors: whole, and the same every time."""

import subprocess
import sys
import tarfile
from pathlib import Path

from savevm_conformance.cases import load_cases
from savevm_conformance.locate import vectors_directory

ROOT = Path(__file__).parents[2]


def test_everything_is_in_it(tmp_path: Path) -> None:
    tool = ROOT / "tools" / "vectors_archive.py"
    packed = [tmp_path / "one" / "vectors.tar.gz", tmp_path / "two" / "vectors.tar.gz"]
    for output in packed:
        subprocess.run([sys.executable, str(tool), str(output)], check=True)
    assert packed[0].read_bytes() == packed[1].read_bytes()
    with tarfile.open(packed[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    root = tmp_path / "savevm-vectors"
    unpacked = load_cases(root / "vectors")
    assert [case.id for case in unpacked] == [case.id for case in load_cases(vectors_directory())]
    for name in ("protocol/v1.json", "docs/protocol.rst", "templates/adapter.c", "rules.toml"):
        assert (root / name).stat().st_size > 1000, name
    assert not list(root.rglob("*.py")) or list(root.rglob("*.py")) == [
        root / "templates/adapter.py"
    ]
