"""Whether an adapter speaks the protocol, whatever it thinks of the streams."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from savevm_conformance.cases import Case
from savevm_conformance.judge import COMPARED
from savevm_conformance.protocol import NO_ANSWER, schema
from savevm_conformance.protocol.client import Adapter, AdapterError
from savevm_conformance.results import Target

__all__ = ["check_adapter", "smoke_cases"]

_SECONDS: Final = 20.0
# How many cases of each verdict are asked for.
_FEW: Final = 3


def smoke_cases(cases: Sequence[Case], target: Target) -> tuple[Case, ...]:
    """The shortest streams that a target has the features for: a few of each verdict and role."""
    chosen: list[Case] = []
    for verdict in ("accept", "reject", "write"):
        able = [
            case
            for case in cases
            if case.verdict == verdict
            and (case.requires <= set(target.features) or case.machine is not None)
            and set(case.roles) & set(target.roles)
        ]
        size = {
            case.id: (case.state if verdict == "write" else case.stream).stat().st_size
            for case in able
        }
        chosen += sorted(able, key=lambda case: (size[case.id], case.id))[:_FEW]
    return tuple(chosen)


def check_adapter(argv: Sequence[str], cases: Sequence[Case]) -> list[str]:
    """What is wrong with the adapter that ``argv`` starts, a line each.

    Needs the package jsonschema.
    """
    problems: list[str] = []
    adapter = Adapter(argv, seconds=_SECONDS)
    try:
        hello = adapter.hello()
        problems += _invalid("hello-reply", hello)
        if problems:
            return problems
        if adapter.hello() != hello:
            problems.append("a second hello gets another reply")
        with tempfile.TemporaryDirectory(prefix="savevm-") as directory:
            for message in _messages(hello, cases, Path(directory)):
                try:
                    reply = adapter.case(message)
                except AdapterError as error:
                    problems.append(f"{message['id']}: {error.outcome}: {error}")
                    if error.outcome == "timeout":
                        break
                    continue
                problems += [
                    f"{message['id']}: {problem}" for problem in _replied(hello, message, reply)
                ]
        for what, word in (("bye", True), ("the end of its input", False)):
            adapter.hello()
            if (code := adapter.bye(word=word)) is None:
                problems.append(f"{what} does not end it")
            elif code != 0:
                problems.append(f"{what}: exit code {code}, not 0")
            elif adapter.last_words:
                problems.append(f"{what} has no reply, but it wrote {adapter.last_words!r}")
    except AdapterError as error:
        problems.append(f"{error.outcome}: {error}")
    finally:
        adapter.kill()
    return problems


def _messages(
    hello: dict[str, Any], cases: Sequence[Case], directory: Path
) -> Iterator[dict[str, Any]]:
    target = Target("", "", "", None, tuple(hello["roles"]), tuple(hello.get("features", ())))
    output, explain = str(directory / "output"), str(directory / "explain")
    for case in smoke_cases(cases, target):
        for role in [role for role in case.roles if role in hello["roles"]]:
            Path(output).unlink(missing_ok=True)
            more = {"output": output} if role in ("writer", "peer") else {"explain": explain}
            yield case.message(role) | more
    machine = {"machine": {"arch": "riscv64", "argv": ["-M", "spike"], "since": "5.2"}}
    nowhere = {
        "stream": str(directory / "nowhere"),
        "state": str(directory / "nowhere"),
        "output": output,
    }
    for role in ("reader", "loader", "writer", "peer"):
        # A file that is not there, or a role that it does not have, is no reason to end.
        yield {"id": f"no file, {role}", "role": role, **nowhere, **machine}


def _replied(hello: dict[str, Any], message: dict[str, Any], reply: dict[str, Any]) -> list[str]:
    outcome, role = reply["outcome"], message["role"]
    # Of what it wants to be, not of all that it could be.
    definition = "failure" if outcome in NO_ANSWER and outcome != "skip" else outcome
    if definition not in ("accept", "reject", "written", "skip", "failure"):
        return [f"the outcome {outcome!r}, of which the protocol does not know"]
    problems = _invalid(definition, reply)
    if role not in hello["roles"] and outcome != "skip":
        problems.append(f"{outcome} in a role that it does not have, not skip")
    elif message["id"].startswith("no file") and outcome in ("accept", "reject", "written"):
        problems.append(f"{outcome}, of a file that is not there")
    elif outcome in (("accept",) if role in ("writer", "peer") else ("written",)):
        problems.append(f"{outcome} is no outcome of a {role}")
    elif outcome == "written" and not Path(message["output"]).is_file():
        problems.append("written, but there is nothing")
    # What a verdict contains is said of streams that are read.
    for key in COMPARED.get(outcome, ()) if role in ("reader", "loader") else ():
        if key in hello.get("says", ()) and key not in reply:
            problems.append(f"{outcome} without {key}, which hello says that it says")
    return problems


def _invalid(definition: str, message: dict[str, Any]) -> list[str]:
    return [
        f"{definition}: {'.'.join(map(str, error.absolute_path)) or 'message'}: {error.message}"
        for error in _validator(definition)(message)
    ]


def _validator(definition: str) -> Callable[[Any], Iterator[Any]]:
    from jsonschema import Draft202012Validator

    whole = {"$ref": f"#/$defs/{definition}", "$defs": schema()["$defs"]}
    errors: Callable[[Any], Iterator[Any]] = Draft202012Validator(whole).iter_errors
    return errors
