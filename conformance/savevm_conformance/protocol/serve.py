"""The adapter's side of the protocol, for adapters in Python."""

import json
import os
import traceback
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from savevm_conformance.protocol import PROTOCOL

__all__ = ["Role", "serve"]

# What a role does with a case: the reply, without its id.
Role = Callable[[dict[str, Any]], dict[str, Any]]


def serve(
    name: str,
    version: str,
    roles: Mapping[str, Role],
    *,
    features: tuple[str, ...] = (),
    says: tuple[str, ...] = (),
    url: str | None = None,
) -> None:
    """Answer the suite on standard input and output until it says bye, or nothing more.

    What an implementation prints on standard output meanwhile goes to standard error, and it, and
    what it starts, has nothing to read on standard input.
    """
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    implementation = {"name": name, "version": version} | ({"url": url} if url else {})
    for line in requests:
        message = json.loads(line)
        if message["cmd"] == "bye":
            return
        if message["cmd"] == "hello":
            reply: dict[str, Any] = {
                "protocol": PROTOCOL,
                "implementation": implementation,
                "roles": list(roles),
                "features": list(features),
                "says": list(says),
            }
        else:
            reply = {"id": message["id"], **_answer(roles, message)}
        _send(replies, reply)


def _answer(roles: Mapping[str, Role], case: dict[str, Any]) -> dict[str, Any]:
    role = roles.get(case["role"])
    if role is None:
        return {"outcome": "skip", "why": f"no {case['role']}"}
    try:
        return role(case)
    except MemoryError:
        return {"outcome": "memory", "why": "MemoryError"}
    except Exception:
        return {"outcome": "error", "why": traceback.format_exc(limit=-6).strip()}


def _send(replies: BinaryIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()
