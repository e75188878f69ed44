"""The reference implementation, ``savevm``."""

import json
from pathlib import Path
from typing import Any

import savevm
from savevm.channel import Channel
from savevm.ram import RamBlock
from savevm.savevm import CannotExpressError, Device, Format, Ram, Registry, save
from savevm.transcript import rebuild, transcribe
from savevm.transport import Address, open_output
from savevm_conformance.adapters import ours


class _Given(Device):
    """A device in a state that was given."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given["idstr"], given["instance_id"], version_id=given["version_id"])
        self._given = given

    def layout(self, version_id: int) -> dict[str, Any]:
        if "layout" in self._given:
            return dict(self._given["layout"])
        return {"size": len(self._given["body"]) // 2}

    def save(self) -> Any:
        return self._given.get("state") or bytes.fromhex(self._given["body"])


def _block(given: dict[str, Any], page_size: int) -> RamBlock:
    block = RamBlock(given["name"], given["used_length"], page_size)
    for page in given["pages"]:
        data = bytes.fromhex(page["hex"]) if "hex" in page else bytes([page["byte"]]) * page["size"]
        block.write(page["address"], data * page.get("count", 1))
    return block


def writer(case: dict[str, Any]) -> dict[str, Any]:
    """Write a state."""
    state = json.loads(Path(case["state"]).read_text("utf-8"))
    registry = Registry()
    if state["ram"]:
        registry.register(Ram([_block(given, state["page_size"]) for given in state["ram"]]))
    for given in state["devices"]:
        registry.register(_Given(given))
    channel = Channel(open_output(Address.parse(f"file:{case['output']}")))
    try:
        save(registry, channel, Format(state["dialect"], state["machine"]))
    except CannotExpressError as error:
        return {"outcome": "reject", "detail": str(error)}
    finally:
        channel.close()
    return {"outcome": "written"}


if __name__ == "__main__":
    ours.run("reference", savevm.__version__, transcribe, rebuild, writer=writer)
