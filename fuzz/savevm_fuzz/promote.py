"""A stream that was found becomes a vector of the conformance suite."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Final

from savevm_conformance.adapters import spec
from savevm_conformance.cases import VERDICTS
from savevm_conformance.generate.files import is_of_spike
from savevm_conformance.locate import vectors_directory
from savevm_conformance.protocol import SAYS
from savevm_conformance.transcripts import features
from savevm_fuzz.findings import led_by
from savevm_fuzz.oracle import disagreement
from savevm_fuzz.targets import open_target

__all__ = ["PromotionError", "promote"]

_NAME: Final = re.compile(r"[a-z-]+/[a-z0-9.-]+")
# What an accepted stream without findings is about, where nobody knows better.
_WHOLE: Final = "stream.truncated"


class PromotionError(Exception):
    """A stream that cannot be a vector."""


def promote(
    data: bytes, told: dict[str, Any], *, slug: str | None = None, why: str | None = None
) -> tuple[str, Path]:
    """Add a stream to ``vectors/found``: the id of the vector, and the file it is listed in.

    ``told`` is what is known of the finding, ``slug`` ``<area>/<name>``, ``why`` a sentence.

    Raises:
        PromotionError: the grammar and the reference disagree on it, it is there, others have to be
            loaded before, or the name is no name.
    """
    if led_by(told.get("got", {})):
        raise PromotionError("a vector is one stream, and this was found behind others")
    reference = open_target("reference")
    verdict, other = reference.predict(data), reference.run(data)
    if {verdict["outcome"], other["outcome"]} - {"accept", "reject"}:
        why_not = verdict.get("why") or other.get("why")
        raise PromotionError(f"the grammar or the reference has no verdict: {why_not}")
    if differ := disagreement(verdict, other, SAYS):
        lines = "\n".join([differ.signature, *differ.lines])
        raise PromotionError(f"the grammar and the reference disagree, so it cannot be: {lines}")
    root = vectors_directory()
    name = slug or f"{_area(root, verdict)}/found-{hashlib.sha256(data).hexdigest()[:8]}"
    area, _, last = name.partition("/")
    if not _NAME.fullmatch(name) or area not in _areas(root):
        raise PromotionError(f"{name}: no <area>/<name> with one of {', '.join(_areas(root))}")
    _check_new(root, name, data)
    who = told.get("implementation", {})
    tested = " ".join(filter(None, [who.get("name"), who.get("version")])) or "an implementation"
    entry = {
        "name": name,
        "stream": f"{area}-{last}.bin",
        "verdict": verdict["outcome"],
        "description": _sentence(why or told.get("signature") or "Found by fuzzing"),
        "provenance": f"found by fuzzing {tested}",
        **_expected(verdict, told, data),
    }
    file = root / "found" / "found.toml"
    file.parent.mkdir(exist_ok=True)
    (file.parent / f"{area}-{last}.bin").write_bytes(data)
    with file.open("a", encoding="utf-8") as listed:
        listed.write("\n" * (listed.tell() > 0) + "[[vector]]\n")
        listed.writelines(f"{key} = {_toml(value)}\n" for key, value in entry.items())
    return f"{area}/{verdict['outcome']}/{last}", file


def _expected(verdict: dict[str, Any], told: dict[str, Any], data: bytes) -> dict[str, Any]:
    if verdict["outcome"] == "accept":
        rules = [finding["rule"] for finding in verdict["findings"]]
        # Somebody who should not have refused it said why.
        rules += filter(None, [told.get("got", {}).get("rule")])
        # What a machine makes of it was not asked.
        machine = {"loader": "either"} if is_of_spike(spec.transcribe(data)) else {}
        return {
            **machine,
            "rules": list(dict.fromkeys(rules)) or [_WHOLE],
            "dialect": verdict["dialect"],
            "findings": verdict["findings"],
        }
    return {
        "rules": [verdict["rule"]],
        "requires": features(spec.transcribe(data)),
        "offset": verdict["offset"],
        **({} if verdict["section"] is None else {"section": verdict["section"]}),
    }


def _areas(root: Path) -> list[str]:
    return sorted({path.parts[-2] for verdict in VERDICTS for path in root.glob(f"*/{verdict}")})


def _area(root: Path, verdict: dict[str, Any]) -> str:
    """That of the rule that is broken."""
    first = str(verdict.get("rule", "")).partition(".")[0]
    return first if first in _areas(root) else "stream"


def _check_new(root: Path, name: str, data: bytes) -> None:
    area, _, last = name.partition("/")
    for path in (*root.glob(f"{area}/*/{last}"), *root.glob(f"found/{area}-{last}.bin")):
        raise PromotionError(f"{name} is there: {path}")
    for path in (*root.glob("*/*/*/stream.bin"), *root.glob("found/*.bin")):
        if path.stat().st_size == len(data) and path.read_bytes() == data:
            raise PromotionError(f"the stream is there: {path}")


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text[0].upper() + text[1:] + "." * (not text.endswith("."))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{k} = {_toml(v)}" for k, v in value.items() if v is not None)
        return f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)
