"""The capture command, against a QEMU of our own making and, where there is one, a real one."""

import hashlib
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped,unused-ignore]
import pytest
from click.testing import CliRunner, Result

from savevm_conformance.capture import FALLBACKS, FILES, Emulator, capture, plan

# What is small and quick, in the order of preference.
SMALL = (
    ("avr", "arduino-uno"),
    ("riscv64", "spike"),
    ("rx", "gdbsim-r5f562n8"),
    ("x86_64", "isapc"),
    ("i386", "isapc"),
    ("aarch64", "microbit"),
    ("arm", "microbit"),
)

# As much of a QEMU as the command can see.  The name of the machine says what it does.
FAKE = r"""
import json, os, signal, socket, sys, time
argv = sys.argv[1:]
machine = argv[argv.index("-M") + 1]
def say(*words): print(f"{sys.argv[0]}:", *words, file=sys.stderr, flush=True)
if machine == "soldered" and "-m" in argv:
    say("warning: cold solder joint"); say("Invalid RAM size, should be 640 KiB"); sys.exit(1)
if machine == "wants-firmware" and "-bios" not in argv:
    say("warning: it is late"); say("could not load firmware 'x.rom'"); sys.exit(1)
if machine == "loud" and "-audio" not in argv:
    say("no default audio driver available"); os.kill(os.getpid(), signal.SIGABRT)
if machine == "wants-the-moon":
    say("Could not open the moon"); sys.exit(1)
wire = socket.socket(fileno=0)
def send(**message): wire.sendall(json.dumps(message).encode() + b"\n")
def commands():
    text = ""
    while got := wire.recv(4096):
        text += got.decode()
        while text := text.lstrip():
            try: command, end = json.JSONDecoder().raw_decode(text)
            except ValueError: break
            text = text[end:]
            yield command
version = {"qemu": {"major": 1, "minor": 2, "micro": 3}, "package": " (Fake 1)"}
send(QMP={"version": version, "capabilities": []})
for command in commands():
    answer = {}
    match command["execute"]:
        case "query-version": answer = version
        case "query-target": answer = {"arch": "fake"}
        case "query-machines": answer = [{"name": name} for name in MACHINES]
        case "migrate":
            if machine == "blocked":
                send(id=command["id"], error={"class": "GenericError", "desc": "State blocked"})
                continue
            if machine == "crashes": os.kill(os.getpid(), signal.SIGSEGV)
            if machine == "hangs": time.sleep(1000)
            magic = "QEVM" if machine != "lies" else "oops"
            uri = command["arguments"]["uri"].removeprefix("exec:")
            with os.popen(uri, "w") as pipe: pipe.write(magic + machine)
        case "query-migrate":
            answer = {"status": "failed" if machine == "fails" else "completed"}
            if machine == "fails": answer["error-desc"] = "no luck"
    send(**{"return": answer}, **{k: v for k, v in command.items() if k == "id"})
    if command["execute"] == "quit": break
"""
MACHINES = ("none", "fine", "loud", "soldered", "wants-firmware")


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def fake(directory: Path, *machines: str) -> Path:
    return script(
        directory / "qemu-system-fake",
        f"#!{sys.executable}\nMACHINES = {machines!r}\n{FAKE}",
    )


def run(*args: object) -> Result:
    args = ("--timeout", 20, *args)
    return CliRunner().invoke(capture, [str(arg) for arg in args])


def manifest(directory: Path) -> Any:
    return json.loads((directory / "MANIFEST.json").read_text())


def left_running(word: str) -> list[list[str]]:
    """Command lines of the processes with ``word`` in it, or in their working directory."""
    for _ in range(50):
        found = [
            process.info["cmdline"]
            for process in psutil.process_iter(["cmdline", "cwd"])
            if any(word in part for part in process.info["cmdline"] or [])
            or word in (process.info["cwd"] or "")
        ]
        if not found:
            break
        # What was killed takes a moment to be gone.
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def real() -> tuple[Path, str]:
    """A real QEMU and a machine type of it."""
    named = Path(os.environ.get("SAVEVM_QEMU", ""))
    for target, machine in SMALL:
        name = f"qemu-system-{target}"
        if "SAVEVM_QEMU" not in os.environ:
            found = shutil.which(name)
        elif named.is_dir():
            found = shutil.which(named / name)
        else:
            found = shutil.which(named) if named.name == name else None
        if found:
            return Path(found).absolute(), machine
    targets = ", ".join(target for target, _ in SMALL)
    pytest.skip(f"no real QEMU on PATH or at SAVEVM_QEMU for any of: {targets}")


@pytest.mark.parametrize("options", [(), ("--no-compress",)])
def test_real_qemu(real: tuple[Path, str], tmp_path: Path, options: tuple[str, ...]) -> None:
    qemu, machine = real
    command = (qemu, "--machine", machine, "-o", tmp_path, *options)
    first = run(*command)
    assert first.exit_code == 0, first.output
    (entry,) = manifest(tmp_path)["streams"]
    assert entry["machine"] == machine
    assert entry["target"] in qemu.name
    assert entry["file"].endswith(".bin" if options else ".bin.xz")
    assert entry["made"]["argv"][:3] == [qemu.name, "-M", machine]
    assert entry["made"]["qmp"][1]["execute"] == "migrate"
    kept = (tmp_path / entry["file"]).read_bytes()
    stream = kept if options else lzma.decompress(kept)
    assert stream.startswith(b"QEVM\0\0\0\3")
    assert len(stream) == entry["size"]
    assert hashlib.sha256(stream).hexdigest() == entry["sha256"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["MANIFEST.json", entry["file"]])

    again = run(*command)
    assert again.exit_code == 0
    assert "0 captured, 1 already there" in again.output
    assert manifest(tmp_path)["streams"] == [entry]
    assert not left_running(str(tmp_path))


def test_what_cannot_be_made_again_is_not_recorded(tmp_path: Path) -> None:
    assert run(fake(tmp_path, "fine"), "-o", tmp_path / "out").exit_code == 0
    text = (tmp_path / "out" / "MANIFEST.json").read_text()
    assert str(tmp_path) not in text


def test_every_machine(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(fake(tmp_path, *MACHINES), "-o", out, "--memory", "64M", "--arg=-x", "-j", 2)
    assert result.exit_code == 0, result.output
    streams = {entry["machine"]: entry for entry in manifest(out)["streams"]}
    assert sorted(streams) == sorted(MACHINES[1:])
    assert streams["fine"]["qemu"] == "1.2.3 (Fake 1)"
    assert streams["fine"]["file"] == "1.2.3_fake_fine.bin.xz"
    kept = (out / streams["fine"]["file"]).read_bytes()
    assert lzma.decompress(kept) == b"QEVMfine"
    assert {"-m", "64M", "-x"} <= set(streams["fine"]["made"]["argv"])
    assert "-m" not in streams["soldered"]["made"]["argv"]
    assert "-audio" in streams["loud"]["made"]["argv"]
    made = streams["wants-firmware"]["made"]
    assert made["argv"][made["argv"].index("-bios") + 1] == "zeros.bin"
    assert made["files"] == {"zeros.bin": {"start": "", "size": 4096}}


@pytest.mark.parametrize(
    ("machine", "kind", "reason"),
    [
        ("wants-the-moon", "does not start", "Could not open the moon"),
        ("blocked", "does not migrate", "State blocked"),
        ("crashes", "failed", "killed by SIGSEGV"),
        ("fails", "failed", "migration failed: no luck"),
        ("lies", "failed", "wrote no stream, though it says it completed"),
        ("hangs", "failed", "no stream within 3 s"),
    ],
)
def test_machine_without_stream(tmp_path: Path, machine: str, kind: str, reason: str) -> None:
    out = tmp_path / "out"
    result = run(fake(tmp_path, machine), "-o", out, "--timeout", 3 if machine == "hangs" else 20)
    assert result.exit_code == 1
    (entry,) = manifest(out)["without"]
    assert (entry["kind"], entry["reason"]) == (kind, reason)
    assert [p.name for p in out.iterdir()] == ["MANIFEST.json"]
    assert not left_running(str(tmp_path))


@pytest.mark.parametrize(("other", "status"), [("blocked", 0), ("crashes", 1)])
def test_only_failures_are_held_against_a_capture(tmp_path: Path, other: str, status: int) -> None:
    assert run(fake(tmp_path, "fine", other), "-o", tmp_path / "out").exit_code == status


def test_taken_up_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    qemu = fake(tmp_path, "fine", "loud")
    assert "1 captured, 0 already there" in run(qemu, "-o", out, "--machine", "fi*").output
    assert "1 captured, 1 already there" in run(qemu, "-o", out).output
    (out / "1.2.3_fake_fine.bin.xz").unlink()
    assert "1 captured, 1 already there" in run(qemu, "-o", out).output
    assert "2 captured, 0 already there" in run(qemu, "-o", out, "--force", "--no-compress").output
    files = ["1.2.3_fake_fine.bin", "1.2.3_fake_loud.bin", "MANIFEST.json"]
    assert sorted(p.name for p in out.iterdir()) == files


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    # SIGINT is ignored from the start in what a shell runs in the background.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from savevm_conformance.capture import capture; capture()"
    qemu = fake(tmp_path, "fine", "hangs")
    command = [sys.executable, "-c", code, str(qemu), "-o", str(out), "-j", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"1.2.3_fake_fine")
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.strip() == b"Aborted!"
    assert [entry["machine"] for entry in manifest(out)["streams"]] == ["fine"]
    assert sorted(p.name for p in out.iterdir()) == ["1.2.3_fake_fine.bin.xz", "MANIFEST.json"]
    assert not left_running(str(tmp_path))


def test_json(tmp_path: Path) -> None:
    result = run(fake(tmp_path, "fine", "blocked"), "-o", tmp_path / "out", "--json")
    said = json.loads(result.stdout)
    assert [entry["machine"] for entry in said["streams"]] == ["fine"]
    assert [entry["machine"] for entry in said["without"]] == ["blocked"]


def test_list(tmp_path: Path) -> None:
    qemu = fake(tmp_path, "none", "fine", "loud")
    assert run(tmp_path, "--list").output.splitlines() == [
        "1.2.3 (Fake 1)  fake  fine",
        "1.2.3 (Fake 1)  fake  loud",
    ]
    rows = json.loads(run(qemu, "--list", "--json", "--machine", "l*").output)
    assert rows == [{"qemu": "1.2.3 (Fake 1)", "target": "fake", "machine": "loud"}]


def test_one_target_under_two_names() -> None:
    def emulator(name: str, *machines: str) -> Emulator:
        return Emulator(Path("/x") / name, "ppc64", "7.2.0", "", machines)

    named = emulator("qemu-system-ppc64", "a", "b")
    planned = plan([emulator("qemu-system-other", "a", "c"), named])
    assert [(e.binary.name, m) for e, m in planned] == [
        ("qemu-system-ppc64", "a"),
        ("qemu-system-ppc64", "b"),
        ("qemu-system-other", "c"),
    ]


def test_fallbacks_use_files_that_are_there() -> None:
    named = {word for f in FALLBACKS for option in f.add for word in option if "." in word}
    assert {word for word in named if word.endswith((".bin", ".elf"))} == set(FILES)
    assert all(len(file.content()) == file.size for file in FILES.values())


@pytest.mark.parametrize(
    "args",
    [
        ("no-such-qemu", "-o", "out"),
        ("/dev/null", "-o", "out"),
        ("/bin/cat",),
        (),
    ],
)
def test_usage(args: tuple[str, ...]) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert "Usage:" in result.output


def test_no_machine_fits(tmp_path: Path) -> None:
    result = run(fake(tmp_path, "fine"), "-o", tmp_path / "out", "--machine", "coarse")
    assert result.exit_code == 2


def test_directory_without_qemu(tmp_path: Path) -> None:
    result = run(tmp_path, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "no qemu-system-*" in result.output


@pytest.mark.parametrize("program", ["true", "cat", "false"])
def test_not_a_qemu(tmp_path: Path, program: str) -> None:
    if not shutil.which(program):
        pytest.skip(f"no {program} on this computer")
    result = run(program, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert f"{program}: does not talk QMP" in result.output


@pytest.mark.parametrize(
    "text",
    [
        "#!/bin/sh\nsleep 98765\n",
        "#!/bin/sh\nsleep 98765 <&- >&- 2>&- &\nwait\n",
    ],
)
def test_hanging_program(tmp_path: Path, text: str) -> None:
    result = run(script(tmp_path / "qemu-system-x", text), "-o", tmp_path / "o", "--timeout", 0.5)
    assert result.exit_code == 1
    assert "qemu-system-x: no answer within 0.5 s" in result.output
    assert not left_running("98765")


def test_damaged_manifest(tmp_path: Path) -> None:
    (tmp_path / "MANIFEST.json").write_text("{}")
    result = run(fake(tmp_path, "fine"), "-o", tmp_path)
    assert result.exit_code == 1
    assert "is not a manifest" in result.output
