"""What a reader makes of a stream: the grammar's prediction, and where another verdict departs from it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from savevm_conformance.adapters import ours, spec
from savevm_conformance.judge import differences, said

__all__ = ["Disagreement", "disagreement", "predict"]


class Disagreement(NamedTuple):
    """``signature`` is the same for what probably has the same cause; ``lines`` are for people."""

    signature: str
    lines: tuple[str, ...]


def predict(data: bytes) -> dict[str, Any]:
    """The grammar's verdict on a stream, as the reply of an adapter that says all there is."""
    return ours.verdict(spec.transcribe(data), data, spec.rebuild)


def disagreement(
    predicted: dict[str, Any], got: dict[str, Any], says: Sequence[str]
) -> Disagreement | None:
    """Where a reply of accept or reject is not the one that was predicted, of what ``says`` names."""
    if predicted["outcome"] != got["outcome"]:
        signature = f"{_kind(predicted)}, not {_kind(got)}"
        return Disagreement(signature, (f"expected {said(predicted)}", f"got {said(got)}"))
    lines = differences(predicted, got, says)
    if not lines:
        return None
    key = lines[0].partition(":")[0]
    others = f", not {got.get('rule')}" if key == "rule" else ""
    return Disagreement(f"{_kind(predicted)}: {key}{others}", tuple(lines))


def _kind(verdict: dict[str, Any]) -> str:
    return " ".join(filter(None, [verdict["outcome"], verdict.get("rule")]))
