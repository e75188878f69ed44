"""A small machine of a real QEMU, driven over QMP, and what it writes."""

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from qemu.qmp import QMPClient

from savevm.transport import send_fd

TARGET = "riscv64"
MACHINE = ("-M", "spike", "-m", "16M", "-bios", "none", "-S", "-nodefaults", "-display", "none")
MONITOR = ("-chardev", "socket,id=qmp,fd=0", "-mon", "chardev=qmp,mode=control")


def find_qemu() -> str:
    """The binary, from SAVEVM_QEMU (a file or directory) or PATH; skips where there is none."""
    name = f"qemu-system-{TARGET}"
    named = Path(os.environ.get("SAVEVM_QEMU", name))
    found = shutil.which(named / name if named.is_dir() else named)
    if found is None or Path(found).name != name:
        pytest.skip(f"no {name} on PATH or at SAVEVM_QEMU: not held against a real QEMU")
    return found


# Bytes of a stream that do not fit into what the system buffers on the way: a QEMU that is left by
# its reader before they are all out notices that, else it may say that it has completed.
LADEN = 12 << 20


def laden(directory: Path) -> tuple[str, ...]:
    """Options that give a machine as much RAM as that which is not zero."""
    (directory / "ram").write_bytes(random.Random(5).randbytes(LADEN))
    return ("-device", "loader,file=ram,addr=0x80000000,force-raw=on")


class Qemu:
    """A running QEMU, stopped before its first instruction; ``incoming`` waits for an address."""

    def __init__(self, directory: Path, *options: str, incoming: bool = False) -> None:
        argv = [find_qemu(), *MACHINE, *options, *MONITOR]
        ours, theirs = socket.socketpair()
        self.said = directory / f"said-{os.urandom(4).hex()}"
        with theirs, self.said.open("wb") as said:
            self.process = subprocess.Popen(
                argv + (["-incoming", "defer"] if incoming else []),
                stdin=theirs.fileno(),
                stdout=said,
                stderr=said,
                cwd=directory,
                start_new_session=True,
            )
        self._runner = asyncio.Runner()
        self._client = QMPClient()
        self._socket = ours.dup()
        self._runner.run(self._client.connect(ours))

    def execute(self, command: str, **arguments: object) -> Any:
        """What QEMU returns; underscores in names of arguments become hyphens."""
        plain = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self._runner.run(self._client.execute(command, plain))

    def hand_over(self, fd: int, name: str) -> None:
        """Give QEMU a descriptor, under a name."""
        send_fd(self._socket, fd)
        self.execute("getfd", fdname=name)

    def migration(self) -> dict[str, Any]:
        """How the migration ended."""
        while True:
            answer: dict[str, Any] = self.execute("query-migrate")
            if answer.get("status") in ("completed", "failed", "cancelled"):
                return answer
            time.sleep(0.01)

    def credentials(self, directory: Path, endpoint: str, *, verify_peer: bool = True) -> None:
        """Have migrations secured with the x509 credentials in ``directory``."""
        self.execute(
            "object-add",
            qom_type="tls-creds-x509",
            id="tls0",
            dir=str(directory),
            endpoint=endpoint,
            verify_peer=verify_peer,
        )
        self.execute("migrate-set-parameters", tls_creds="tls0")

    def __enter__(self) -> "Qemu":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._socket.close()
        # It says in many ways that the other side is gone.
        with contextlib.suppress(Exception):
            self._runner.run(self._client.disconnect())
        self._runner.close()


def whole(data: bytes) -> bytes:
    """``data``, if it is a stream that goes from its header to the end of its description."""
    assert data.startswith(b"QEVM\0\0\0\3")
    starts = (found.start() for found in re.finditer(rb"\{", data))
    at = next(s for s in starts if data[s - 5 : s] == b"\6" + struct.pack(">I", len(data) - s))
    assert json.loads(data[at:])["devices"]
    return data


@pytest.fixture(scope="module", name="stream")
def stream_of_qemu(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What QEMU writes, by its own means."""
    directory = tmp_path_factory.mktemp("qemu")
    with Qemu(directory) as qemu:
        qemu.execute("migrate", uri="exec:cat > stream.part && mv stream.part stream")
        assert qemu.migration()["status"] == "completed"
    while not (directory / "stream").exists():
        time.sleep(0.01)
    return whole((directory / "stream").read_bytes())
