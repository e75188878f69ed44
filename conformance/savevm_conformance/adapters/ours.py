"""What the adapters of the reference and of the grammar share: both give transcripts."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from savevm_conformance.protocol import CLASSES, SAYS
from savevm_conformance.protocol.serve import Role, serve
from savevm_conformance.transcripts import digest, ram, records

FEATURES: Final = (
    "version-1",
    "version-2",
    "configuration",
    "commands",
    "footers",
    "ram-1",
    "ram-2",
    "ram-3",
    "ram-4",
    "page-size",
    "block",
    "htab",
    "storage-attributes",
    "vmdesc",
    "vmstate",
    "schemas",
    "opaque",
    "limits",
)


def verdict(
    transcript: dict[str, Any], data: bytes, rebuild: Callable[[bytes], bytes]
) -> dict[str, Any]:
    """The reply, but for its id, of which the stream ``data`` has this transcript."""
    error, findings = transcript["error"], transcript["findings"]
    if error is not None:
        told = {key: error[key] for key in ("rule", "offset", "section")}
        kind = CLASSES[error["errno"]]
        return {"outcome": "reject", "class": kind, "findings": findings, **told}
    return {
        "outcome": "accept",
        "findings": findings,
        "dialect": transcript["dialect"],
        "records": records(transcript),
        "ram": ram(transcript),
        "transcript": digest(transcript),
        "rebuilt": hashlib.sha256(rebuild(data)).hexdigest(),
    }


def run(
    name: str,
    version: str,
    transcribe: Callable[[bytes], dict[str, Any]],
    rebuild: Callable[[bytes], bytes],
    **roles: Role,
) -> None:
    """Serve two functions: the transcript of a stream, and the stream read and written again."""

    def reader(case: dict[str, Any]) -> dict[str, Any]:
        data = Path(case["stream"]).read_bytes()
        transcript = transcribe(data)
        if "explain" in case:
            Path(case["explain"]).write_text(json.dumps(transcript), "utf-8")
        return verdict(transcript, data, rebuild)

    serve(name, version, {"reader": reader, **roles}, features=FEATURES, says=SAYS)
