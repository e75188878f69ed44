"""What a migration is told beforehand: capabilities and parameters, named and bounded as QEMU's."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from savevm.machine.layouts import RELEASES

__all__ = ["CAPABILITIES", "PARAMETERS", "Parameter", "Settings", "SettingsError"]

# In QEMU's order; whether it can be switched on here.
CAPABILITIES: Final[dict[str, bool]] = {
    "xbzrle": False,
    "rdma-pin-all": False,
    "auto-converge": False,
    "events": True,
    "postcopy-ram": False,
    "x-colo": False,
    "release-ram": False,
    "return-path": True,
    "pause-before-switchover": True,
    "multifd": False,
    "dirty-bitmaps": False,
    "postcopy-blocktime": False,
    "late-block-activate": True,
    "x-ignore-shared": False,
    "validate-uuid": False,
    "background-snapshot": False,
    "zero-copy-send": False,
    "postcopy-preempt": False,
    "switchover-ack": False,
    "dirty-limit": False,
    "mapped-ram": False,
}

_WORD: Final = (1 << 64) - 1


class SettingsError(ValueError):
    """A capability or parameter that is unknown, out of bounds, or not supported."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter: its ``default``, whose type it has, and its bounds or ``choices``.

    ``unit`` is what people are shown behind the number.  ``shown`` is whether they are, among the
    parameters.
    """

    default: int | bool | str | list[str]
    minimum: int = 0
    maximum: int = _WORD
    unit: str = ""
    choices: tuple[str, ...] = ()
    shown: bool = True


# In the order in which QEMU shows them.  Those of capabilities that are not supported are kept only.
PARAMETERS: Final[dict[str, Parameter]] = {
    "announce-initial": Parameter(50, maximum=100000, unit="ms"),
    "announce-max": Parameter(550, maximum=100000, unit="ms"),
    "announce-rounds": Parameter(5, maximum=1000),
    "announce-step": Parameter(100, 1, 10000, unit="ms"),
    "throttle-trigger-threshold": Parameter(50, 1, 100),
    "cpu-throttle-initial": Parameter(20, 1, 99),
    "cpu-throttle-increment": Parameter(10, 1, 99),
    "cpu-throttle-tailslow": Parameter(False),
    "max-cpu-throttle": Parameter(99, 1, 99),
    "tls-creds": Parameter(""),
    "tls-hostname": Parameter(""),
    "tls-authz": Parameter(""),
    "max-bandwidth": Parameter(128 << 20, unit="bytes/second"),
    "avail-switchover-bandwidth": Parameter(0, unit="bytes/second"),
    "max-postcopy-bandwidth": Parameter(0, unit="bytes/second"),
    "downtime-limit": Parameter(300, maximum=2000 * 1000, unit="ms"),
    "x-checkpoint-delay": Parameter(20000, maximum=(1 << 32) - 1, unit="ms"),
    "multifd-channels": Parameter(2, 1, 255),
    "multifd-compression": Parameter("none", choices=("none", "zlib", "zstd")),
    "multifd-zlib-level": Parameter(1, maximum=9, shown=False),
    "multifd-zstd-level": Parameter(1, maximum=20, shown=False),
    "multifd-qatzip-level": Parameter(1, 1, 9, shown=False),
    "zero-page-detection": Parameter("multifd", choices=("none", "legacy", "multifd")),
    "xbzrle-cache-size": Parameter(64 << 20, 4096, unit="bytes"),
    "x-vcpu-dirty-limit-period": Parameter(1000, 1, 1000, unit="ms"),
    "vcpu-dirty-limit": Parameter(1, 1, unit="MB/s"),
    "mode": Parameter("normal", choices=("normal",)),
    "direct-io": Parameter(False),
    "x-rdma-chunk-size": Parameter(1 << 20, 1 << 20, 1 << 30, unit="bytes"),
    "cpr-exec-command": Parameter([]),
    # Ours: whose layouts are written, and what may be left out where they have no place for it.
    "x-release": Parameter("", choices=("", *RELEASES)),
    "x-drop": Parameter(""),
}


@dataclass
class Settings:
    """Capabilities and parameters as they are now; ``x-release`` empty: that of what came in, else
    the newest."""

    capabilities: dict[str, bool] = field(
        default_factory=lambda: dict.fromkeys(CAPABILITIES, False)
    )
    parameters: dict[str, Any] = field(
        default_factory=lambda: {name: known.default for name, known in PARAMETERS.items()}
    )

    @property
    def max_bandwidth(self) -> int:
        """Bytes per second; 0 is no limit."""
        return int(self.parameters["max-bandwidth"])

    @property
    def downtime_limit(self) -> float:
        """Seconds."""
        return int(self.parameters["downtime-limit"]) / 1000

    @property
    def release(self) -> str:
        """One of ``RELEASES``, or empty."""
        return str(self.parameters["x-release"])

    @property
    def drop(self) -> Sequence[str]:
        """Names of what a layout may leave out; in ``x-drop`` they are separated by "," or ":"."""
        return tuple(name for name in re.split("[,:]", self.parameters["x-drop"]) if name)

    def set_capabilities(self, wanted: Mapping[str, bool]) -> None:
        """Switch all of ``wanted``, or none; raises ``SettingsError``."""
        for name, state in wanted.items():
            if name not in CAPABILITIES:
                raise SettingsError(f"Parameter 'capability' does not accept value '{name}'")
            if state and not CAPABILITIES[name]:
                raise SettingsError(f"Capability '{name}' is not supported by this machine")
        self.capabilities.update(wanted)

    def set_parameters(self, wanted: Mapping[str, object]) -> None:
        """Set all of ``wanted``, whose values have the type of the defaults, or none.

        Raises ``SettingsError``.
        """
        checked = {name: _checked(name, value) for name, value in wanted.items()}
        together = self.parameters | checked
        if together["max-cpu-throttle"] < together["cpu-throttle-initial"]:
            raise SettingsError(
                "Option max-cpu-throttle expects an integer in the range of cpu-throttle-initial "
                "to 99"
            )
        self.parameters = together


def _checked(name: str, value: object) -> object:
    known = PARAMETERS.get(name)
    if known is None:
        raise SettingsError(f"Parameter '{name}' is unexpected")
    if isinstance(known.default, bool):
        if not isinstance(value, bool):
            raise SettingsError(f"Invalid parameter type for '{name}', expected: boolean")
    elif isinstance(known.default, int):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _WORD:
            raise SettingsError(f"Parameter '{name}' expects uint64")
        if not known.minimum <= value <= known.maximum:
            unit = f" {known.unit}" if known.unit else ""
            raise SettingsError(
                f"Option {name} expects an integer in the range of {known.minimum} to "
                f"{known.maximum}{unit}"
            )
        if name == "xbzrle-cache-size" and value & (value - 1):
            raise SettingsError(f"Option {name} expects a power of two no less than the page size")
    elif isinstance(known.default, str):
        # QEMU takes null for nothing.
        value = "" if value is None else value
        if not isinstance(value, str):
            raise SettingsError(f"Invalid parameter type for '{name}', expected: string")
        if known.choices and value not in known.choices:
            raise SettingsError(f"Parameter '{name}' does not accept value '{value}'")
    elif not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise SettingsError(f"Invalid parameter type for '{name}', expected: array")
    return value
