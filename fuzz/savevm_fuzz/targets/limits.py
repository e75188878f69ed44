"""Limits of time and memory for what runs in this process, and what becomes of one that breaks them."""

import multiprocessing
import os
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

__all__ = ["GRACE", "DiedError", "apart", "died", "guarded", "late"]

T = TypeVar("T")

# Innermost frames that are told of an exception.
_FRAMES: Final = -6
# Seconds after its time is up until a process is ended that does not end by itself.
GRACE: Final = 5.0
_STATM: Final = Path("/proc/self/statm")


class _TimeUpError(BaseException):
    """Not an ``Exception``, which somebody could catch on the way."""


def guarded(
    work: Callable[[bytes], dict[str, Any]], data: bytes, seconds: float, memory: int
) -> dict[str, Any]:
    """The reply that ``work`` gives, or one that says what became of it.

    Outcomes besides those of ``work``: "crash" for an exception, "timeout" after ``seconds``,
    "memory" where it took ``memory`` bytes more than there were.  Only in the main thread.
    """
    try:
        with _limited(seconds, memory):
            return work(data)
    except _TimeUpError:
        return late(seconds)
    except MemoryError:
        return {"outcome": "memory", "why": f"it took more than {memory >> 20} MiB"}
    except Exception:
        return {"outcome": "crash", "why": traceback.format_exc(limit=_FRAMES).strip()}


@contextmanager
def _limited(seconds: float, memory: int) -> Iterator[None]:
    def up(*_: object) -> None:
        raise _TimeUpError

    handler = signal.signal(signal.SIGALRM, up)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = int(_STATM.read_bytes().split()[0]) * os.sysconf("SC_PAGE_SIZE") + memory
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, handler)


class DiedError(Exception):
    """A process ended before it had a result; ``reply`` is what that is to be called."""

    def __init__(self, reply: dict[str, Any]) -> None:
        super().__init__(reply["why"])
        self.reply: Final = reply


def apart(work: Callable[[bytes], T], data: bytes, seconds: float) -> T:
    """What ``work`` gives, in a process of its own; raises `DiedError`."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=lambda: theirs.send(work(data)), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds + GRACE):
            raise DiedError(late(seconds))
        result: T = ours.recv()
        return result
    except EOFError:
        process.join()
        raise DiedError(died(process.exitcode)) from None
    finally:
        process.kill()
        process.join()
        ours.close()


def late(seconds: float) -> dict[str, Any]:
    """The reply of one that does not end."""
    return {"outcome": "timeout", "why": f"no answer within {seconds:g} s"}


def died(code: int | None) -> dict[str, Any]:
    """The reply of a process that ended with that exit code."""
    how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
    return {"outcome": "crash", "why": f"the process ended with {how}"}
