"""A guest that runs goes from one real QEMU through the reference into another, over TCP.

SAVEVM_QEMUS names them: paths of binaries, or of directories with one, as in PATH; without it, the
one on PATH.
"""

import asyncio
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from savevm.cli import main
from savevm.cli.demo import Leg, legs
from savevm.cli.processes import OURS, Kind, find_qemus

QEMUS = find_qemus(
    [place for place in os.environ.get("SAVEVM_QEMUS", "").split(os.pathsep) if place]
)

pytestmark = pytest.mark.skipif(
    not QEMUS,
    reason="no qemu-system-riscv64 on PATH or in SAVEVM_QEMUS: not held against real QEMUs",
)


async def _go(way: list[Kind], directory: Path) -> list[Leg]:
    return [leg async for leg in legs(way, directory, "32M", lambda leg: lambda statistics: None)]


@pytest.mark.parametrize("last", QEMUS, ids=lambda kind: f"to {kind.release}")
@pytest.mark.parametrize("first", QEMUS, ids=lambda kind: f"from {kind.release}")
def test_through_the_reference(first: Kind, last: Kind, tmp_path: Path) -> None:
    done = asyncio.run(asyncio.wait_for(_go([first, OURS, last], tmp_path), 120))
    assert [leg.wrong for leg in done] == ["", ""]
    for leg in done:
        # The first round has every page; each later one has those that were written since.
        assert leg.rounds > 2
        assert leg.again > 0


def test_demo() -> None:
    """From one machine of the reference to another, and through a QEMU: what the command says."""
    options = [option for kind in QEMUS[-1:] for option in ("--qemu", kind.argv[0])]
    result = CliRunner().invoke(main, ["demo", "--json", "--memory", "16M", *options])
    said = json.loads(result.stdout)
    assert (result.exit_code, said["ok"]) == (0, True)
    kinds = [leg["destination"] for leg in said["legs"]]
    assert kinds == ["reference", QEMUS[-1].name, "reference"]
    assert all(leg["again"] > 0 and leg["downtime"] > 0 for leg in said["legs"])


def test_demo_without_a_qemu(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo", "--qemu", str(tmp_path)])
    assert result.exit_code != 0
    assert f"{tmp_path}: no qemu-system-riscv64" in result.output
