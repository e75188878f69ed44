"""The suite's side of the protocol: an adapter as a process with a deadline and a limit of memory."""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Any, BinaryIO, Final

from savevm_conformance.processes import resident
from savevm_conformance.protocol import PROTOCOL

__all__ = ["Adapter", "AdapterError"]

# Seconds for an adapter to start and to end, and between two looks at its memory.
START: Final = 30.0
END: Final = 5.0
_LOOK: Final = 0.05
# Bytes of the longest line that is taken, of what is kept of standard error and is told of it, and
# of what is shown of standard output.
_LINE: Final = 64 << 20
_KEPT: Final = 64 << 20
_TAIL: Final = 2000
_SHOWN: Final = 200
_NAMES: Final = ("name", "version")


class AdapterError(Exception):
    """An adapter that does not answer as it should, and has been ended.

    ``outcome`` is "error" (it broke the protocol), "crash" (it ended), "timeout" or "memory".
    """

    def __init__(self, outcome: str, why: str) -> None:
        super().__init__(why)
        self.outcome: Final = outcome


class Adapter:
    """A program that speaks the protocol, started when it is first asked and again after it failed.

    ``seconds`` are for one case, ``memory`` bytes for the process with its children.
    """

    def __init__(self, argv: Sequence[str], *, seconds: float, memory: int | None = None) -> None:
        self.argv: Final = list(argv)
        self._seconds: Final = seconds
        self._memory: Final = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: BinaryIO
        self._held = b""
        self._place = ""
        self.last_words = b""

    def hello(self) -> dict[str, Any]:
        """Who it is and what it can; raises `AdapterError`."""
        reply = self._ask(self._running(), {"cmd": "hello", "protocol": PROTOCOL}, START)
        if problem := _misintroduced(reply):
            raise self._failed("error", problem)
        return reply

    def case(self, message: dict[str, Any]) -> dict[str, Any]:
        """The reply to a case; raises `AdapterError`, after which another case can be asked."""
        if self._process is None:
            self.hello()
        reply = self._ask(self._running(), {"cmd": "case", **message}, self._seconds)
        if reply.get("id") != message["id"] or not isinstance(reply.get("outcome"), str):
            raise self._failed("error", f"no reply to {message['id']}: {str(reply)[:200]}")
        return reply

    def bye(self, *, word: bool = True) -> int | None:
        """Have it end by itself: its exit code, None where it had to be killed or was not running.

        Without a ``word`` only its standard input ends, as when the suite itself was killed.
        ``last_words`` is then what it has answered to that, which should be nothing.
        """
        if (process := self._process) is None:
            return None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                if word:
                    process.stdin.write(b'{"cmd":"bye"}\n')
                    process.stdin.flush()
                else:
                    process.stdin.close()
            code = process.wait(END)
            os.set_blocking(process.stdout.fileno(), False)
            self.last_words = self._held + (process.stdout.read(_SHOWN) or b"")
            return code
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.kill()

    def kill(self) -> None:
        """End it and what it has started."""
        if (process := self._process) is None:
            return
        self.interrupt()
        self._process = None
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        self._errors.close()
        shutil.rmtree(self._place, ignore_errors=True)

    def interrupt(self) -> None:
        """End it from another thread: who waits for its reply gets an `AdapterError`."""
        if (process := self._process) is not None:
            # What it has started may be there still when it is not.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            # No pipe, which would fill up; and appended to, so that it can be cut meanwhile.
            self._errors = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            fcntl.fcntl(self._errors, fcntl.F_SETFL, os.O_APPEND)
            self._held = b""
            # For what it could not remove itself, if it is killed.
            self._place = tempfile.mkdtemp(prefix="savevm-")
            try:
                self._process = subprocess.Popen(
                    self.argv,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    env=os.environ | {"TMPDIR": self._place},
                    start_new_session=True,
                )
            except OSError as error:
                self._errors.close()
                os.rmdir(self._place)
                raise AdapterError("error", f"{self.argv[0]}: {error.strerror}") from error
        return self._process

    def _ask(
        self, process: subprocess.Popen[bytes], message: dict[str, Any], seconds: float
    ) -> dict[str, Any]:
        assert process.stdin is not None
        if process.poll() is not None:
            raise self._ended(process)
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended(process) from error
        line = self._line(process, seconds)
        try:
            reply = json.loads(line)
            if not isinstance(reply, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            why = f"the reply is no JSON object ({error}): {line[:_SHOWN]!r}"
            raise self._failed("error", why) from error
        return reply

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes:
        assert process.stdout is not None
        deadline = time.monotonic() + seconds
        output = select.poll()
        output.register(process.stdout, select.POLLIN)
        pieces = [self._held]
        size = len(self._held)
        while b"\n" not in pieces[-1]:
            left = deadline - time.monotonic()
            if left <= 0:
                why = f"no answer within {seconds:g} s; does it flush its output?"
                raise self._failed("timeout", why)
            if self._memory is not None and resident(process.pid) > self._memory:
                raise self._failed("memory", f"it took more than {self._memory >> 20} MiB")
            if self._errors.seek(0, os.SEEK_END) > _KEPT:
                said = self._said()
                self._errors.truncate(0)
                self._errors.write(said)
            # A child of it can hold its standard output open when it has ended.
            ended = process.poll() is not None
            if not output.poll(0 if ended else 1000 * min(left, _LOOK)):
                if ended:
                    raise self._ended(process)
                continue
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                raise self._ended(process)
            pieces.append(piece)
            size += len(piece)
            if size > _LINE:
                raise self._failed("error", f"a line of more than {_LINE} bytes")
        line, _, self._held = b"".join(pieces).partition(b"\n")
        return line

    def _ended(self, process: subprocess.Popen[bytes]) -> AdapterError:
        try:
            code = process.wait(END)
        except subprocess.TimeoutExpired:
            return self._failed("error", "it closed its standard input or output")
        how = f"exit code {code}" if code >= 0 else f"signal {_signal(-code)}"
        return self._failed("crash", f"the adapter ended with {how}")

    def _failed(self, outcome: str, why: str) -> AdapterError:
        """End it; ``why``, with the end of what it has said on standard error."""
        said = self._said().decode("utf-8", "replace").strip()
        self.kill()
        return AdapterError(outcome, f"{why}: {said}" if said else why)

    def _said(self) -> bytes:
        """The end of what is on its standard error."""
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - _TAIL))
        return self._errors.read(_TAIL)


def _misintroduced(hello: dict[str, Any]) -> str | None:
    """What is wrong with a reply to hello, as far as it is needed to go on."""
    if missing := {"protocol", "implementation", "roles"} - hello.keys():
        return f"hello without {', '.join(sorted(missing))}"
    if hello["protocol"] != PROTOCOL:
        return f"it speaks protocol {hello['protocol']}"
    who = hello["implementation"]
    if not isinstance(who, dict) or not all(isinstance(who.get(k), str) for k in _NAMES):
        return f"an implementation without {' and '.join(_NAMES)}"
    for key in ("roles", "features", "says"):
        value = hello.get(key, [])
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            return f"{key} is not a list of words"
    return None


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
