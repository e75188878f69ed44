"""An adapter to begin with, which reads no farther than the machine's name: go on in `read`."""

import json
import sys
from pathlib import Path

HELLO = {
    "protocol": 1,
    "implementation": {"name": "mine", "version": "0.1"},
    "roles": ["reader"],
    "features": ["configuration"],  # what it knows of the format; nothing else is asked for
    "says": ["class", "offset"],  # what is compared, besides the outcome
}


def read(case: dict[str, str]) -> dict[str, object]:
    if case["role"] != "reader":
        return {"outcome": "skip", "why": "it only reads"}
    data = Path(case["stream"]).read_bytes()
    if not data.startswith(b"QEVM"[: len(data)]):
        return {"outcome": "reject", "class": "malformed", "offset": 0}
    if not data[4:].startswith(b"\0\0\0\3"[: len(data[4:])]):
        return {"outcome": "reject", "class": "unsupported", "offset": 4}
    at = 8
    if data[at : at + 1] == b"\7":
        at += 5 + int.from_bytes(data[at + 1 : at + 5], "big")
    if at >= len(data):
        return {"outcome": "reject", "class": "truncated", "offset": len(data)}
    return {"outcome": "skip", "why": f"type {data[at]}"} if data[at] else {"outcome": "accept"}


for line in sys.stdin:
    if (message := json.loads(line))["cmd"] == "bye":
        break
    try:
        reply = {"id": message["id"], **read(message)} if message["cmd"] == "case" else HELLO
    except Exception as error:
        reply = {"id": message["id"], "outcome": "error", "why": repr(error)}
    print(json.dumps(reply), flush=True)
