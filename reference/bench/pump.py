"""Copies from a file to a UNIX socket, or back: to sockets what cat is to files and pipes.

``pump.py send FILE SOCKET`` connects, ``pump.py receive FILE SOCKET`` listens.  It says "ready" on
standard output; a sender then waits for a line on standard input; when all is copied it says "done".
"""

import os
import socket
import sys
import time

CHUNK = 256 << 10


def copy(source: int, target: int) -> None:
    """All of ``source``, by read and write."""
    while data := os.read(source, CHUNK):
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(target, rest) :]


def connected(path: str) -> socket.socket:
    """To whoever listens at ``path``, as soon as somebody does."""
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            time.sleep(0.0005)


def main() -> None:
    job, name, path = sys.argv[1:]
    if job == "send":
        file = os.open(name, os.O_RDONLY)
        print("ready", flush=True)
        sys.stdin.readline()
        with connected(path) as connection:
            copy(file, connection.fileno())
    else:
        # What is there is written over: its memory is the receiver's already.
        file = os.open(name, os.O_WRONLY)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(1)
            print("ready", flush=True)
            connection, _ = listener.accept()
            with connection:
                copy(connection.fileno(), file)
    print("done", flush=True)


if __name__ == "__main__":
    main()
