"""Targets that speak the protocol of the conformance suite."""

from pathlib import Path
from typing import Any, Final

from savevm_conformance.adapters import ours, spec
from savevm_conformance.generate.model import SPIKE
from savevm_conformance.protocol.client import Adapter, AdapterError
from savevm_conformance.targets import command_of
from savevm_conformance.transcripts import features
from savevm_fuzz.targets import scratch
from savevm_fuzz.targets.limits import guarded

__all__ = ["AdapterTarget"]

_UNPREDICTED: Final[dict[str, Any]] = {"outcome": "skip"}


class AdapterTarget:
    """A program that reads streams or, if it does not, loads them into a machine.

    Of what it does not declare to know nothing is predicted, nor of what a machine accepts.
    """

    def __init__(self, target: str, *, seconds: float, memory: int) -> None:
        self._limits: Final = seconds, memory
        self.adapter: Final = Adapter(command_of(target), seconds=seconds, memory=memory)
        try:
            hello = self.adapter.hello()
        except AdapterError as error:
            raise ValueError(f"{target}: {error}") from error
        self.name: Final[str] = hello["implementation"]["name"]
        self.version: Final[str] = hello["implementation"]["version"]
        self.says: Final = tuple(hello.get("says", ()))
        self.roles: Final = tuple(hello["roles"])
        self.features: Final = frozenset(hello.get("features", ()))
        # Loads only streams of its machine.
        self.loads: Final = "reader" not in self.roles and "loader" in self.roles
        self._directory: Final = scratch()
        self._stream: Final = Path(self._directory.name, "stream.bin")

    def run(self, data: bytes) -> dict[str, Any]:
        """See `Target`."""
        self._stream.write_bytes(data)
        given = {"role": "loader", "machine": SPIKE} if self.loads else {"role": "reader"}
        return self._ask({"stream": str(self._stream), **given})

    def write(self, message: dict[str, Any]) -> dict[str, Any]:
        """See `Writer`."""
        return self._ask(message)

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The reply to a case, also where it fails."""
        try:
            return self.adapter.case({"id": "fuzz", **message})
        except AdapterError as error:
            return {"outcome": error.outcome, "why": str(error)}

    def predict(self, data: bytes) -> dict[str, Any]:
        """See `Target`."""
        return guarded(self._predicted, data, *self._limits)

    def _predicted(self, data: bytes) -> dict[str, Any]:
        transcript = spec.transcribe(data)
        predicted = ours.verdict(transcript, data, spec.rebuild)
        if self.loads:
            return predicted if predicted["outcome"] == "reject" else _UNPREDICTED
        needed = set(features(transcript))
        if predicted["outcome"] == "reject" and predicted["class"] == "limit":
            needed.add("limits")
        return predicted if needed <= self.features else _UNPREDICTED

    def close(self) -> None:
        """See `Target`."""
        self.adapter.kill()
        self._directory.cleanup()
