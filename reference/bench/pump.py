"""Copies a file to a UNIX socket, or back, by read and write: to sockets what cat is to pipes.

``pump.py send FILE PATH`` connects as soon as somebody listens, ``pump.py receive FILE PATH``
listens; either says "ready" on standard output before it waits for the other.
"""

import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial

CHUNK = 256 << 10


def copy(source: int, target: int) -> None:
    """Move all of ``source``."""
    while data := os.read(source, CHUNK):
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(target, rest) :]


def send(file: str, path: str, ready: Callable[[], object] = lambda: None) -> None:
    with open(file, "rb", 0) as source:
        ready()
        while True:
            with socket.socket(socket.AF_UNIX) as connection:
                try:
                    connection.connect(path)
                except (FileNotFoundError, ConnectionRefusedError):
                    time.sleep(0.0005)
                    continue
                return copy(source.fileno(), connection.fileno())


def receive(file: str, path: str, ready: Callable[[], object] = lambda: None) -> None:
    # What is there is written over: its memory is there too.
    target = os.open(file, os.O_WRONLY | os.O_CREAT)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        ready()
        connection, _ = listener.accept()
    with connection:
        copy(connection.fileno(), target)
    os.close(target)


if __name__ == "__main__":
    job = {"send": send, "receive": receive}[sys.argv[1]]
    job(sys.argv[2], sys.argv[3], partial(print, "ready", flush=True))
