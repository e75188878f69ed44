"""The protocol: adapters that keep to it, and those that fail in every way that there is."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from savevm_conformance.adapters.ours import FEATURES
from savevm_conformance.cases import load_cases
from savevm_conformance.locate import vectors_directory
from savevm_conformance.protocol import CLASSES, NO_ANSWER, PROTOCOL, ROLES, SAYS, client, schema
from savevm_conformance.protocol.client import Adapter, AdapterError
from savevm_conformance.targets import OURS, command_of

HELLO = {
    "protocol": 1,
    "implementation": {"name": "small", "version": "1"},
    "roles": ["reader"],
}
# Does something of its own for the case "bad", and answers any other.
PROGRAM = """
import json, os, signal, subprocess, sys, time

def say(**reply):
    print(json.dumps(reply), flush=True)

for line in sys.stdin:
    message = json.loads(line)
    if message["cmd"] == "bye":
        break
    elif message["cmd"] == "hello":
        {hello}
    elif message["id"] == "bad":
        {bad}
    else:
        say(id=message["id"], outcome="accept")
{end}
"""
Make = Callable[..., Adapter]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Adapters made of a few lines."""
    made: list[Adapter] = []
    monkeypatch.setattr(client, "END", 0.5)

    def adapter(
        bad: str = "pass",
        *,
        hello: str = f"say(**{HELLO})",
        end: str = "",
        seconds: float = 20,
        memory: int | None = None,
    ) -> Adapter:
        path = tmp_path / f"adapter{len(made)}.py"
        path.write_text(PROGRAM.format(hello=hello, bad=bad, end=end))
        made.append(Adapter([sys.executable, str(path)], seconds=seconds, memory=memory))
        return made[-1]

    yield adapter
    for one in made:
        one.kill()


def ask(adapter: Adapter, id: str, **more: str) -> dict[str, Any]:
    return adapter.case({"id": id, "role": "reader", "stream": "/dev/null", **more})


def is_running(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends(pid: int) -> bool:
    """Whether a process ends, which may take it a moment."""
    for _ in range(200):
        if not is_running(pid):
            return True
        time.sleep(0.05)
    return False


def test_one_process_for_many_cases(make: Make) -> None:
    adapter = make('say(id="bad", outcome=str(os.getpid()))')
    assert adapter.hello() == HELLO
    assert ask(adapter, "bad") == ask(adapter, "bad")
    assert ask(adapter, "other") == {"id": "other", "outcome": "accept"}
    assert adapter.bye() == 0
    assert adapter.bye() is None
    # It is started again when it is asked again.
    assert ask(adapter, "other")["outcome"] == "accept"


@pytest.mark.parametrize(
    ("bad", "outcome", "why"),
    [
        ("os._exit(7)", "crash", "ended with exit code 7"),
        ("sys.exit()", "crash", "ended with exit code 0"),
        ("os.abort()", "crash", "signal SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 3)", "crash", "signal 37"),
        ("sys.exit('its last words')", "crash", "exit code 1: its last words"),
        ("1 / 0", "crash", "ZeroDivisionError"),
        ("print('{', end='', flush=True); os._exit(7)", "crash", "exit code 7"),
        ("print('warning: x', flush=True)", "error", "Expecting value: .*'warning: x'"),
        ("print(flush=True)", "error", "Expecting value"),
        ("print('[]', flush=True)", "error", "not an object"),
        ("print('[' * 100_000, flush=True)", "error", "recursion"),
        ("os.write(1, b'\\xff\\n')", "error", "decode"),
        ("say(id='other', outcome='accept')", "error", "no reply to bad"),
        ("say(outcome='accept')", "error", "no reply to bad"),
        ("say(id='bad')", "error", "no reply to bad"),
        ("say(id='bad', outcome=1)", "error", "no reply to bad"),
        ("say(**HELLO)", "crash", "NameError"),
        ("os.close(1); time.sleep(60)", "error", "it closed its standard input or output"),
    ],
)
def test_failures(make: Make, bad: str, outcome: str, why: str) -> None:
    adapter = make(bad)
    for _ in range(2):
        with pytest.raises(AdapterError, match=why) as caught:
            ask(adapter, "bad")
        assert caught.value.outcome == outcome
    assert ask(adapter, "other")["outcome"] == "accept"


@pytest.mark.parametrize(
    "bad",
    [
        "time.sleep(60)",
        "print('{\"id\":', end='', flush=True); time.sleep(60)",
        "while True: print('{', end='', flush=True); time.sleep(0.01)",
        "while True: pass",
    ],
)
def test_time(make: Make, bad: str) -> None:
    adapter = make(bad, seconds=0.5)
    with pytest.raises(AdapterError, match=r"no answer within 0\.5 s") as caught:
        ask(adapter, "bad")
    assert caught.value.outcome == "timeout"
    assert ask(adapter, "other")["outcome"] == "accept"


@pytest.mark.parametrize(
    "bad",
    [
        "held = b'x' * (300 << 20); time.sleep(60)",
        "subprocess.run([sys.executable, '-c', \"held = b'x' * (300 << 20); input()\"])",
    ],
)
def test_memory(make: Make, bad: str) -> None:
    adapter = make(bad, memory=150 << 20)
    with pytest.raises(AdapterError, match="more than 150 MiB") as caught:
        ask(adapter, "bad")
    assert caught.value.outcome == "memory"
    assert ask(adapter, "other")["outcome"] == "accept"


def test_a_long_line(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_LINE", 1 << 20)
    adapter = make("say(id='bad', outcome='accept', transcript='0' * int(message['length']))")
    assert len(ask(adapter, "bad", length="1000000")["transcript"]) == 1_000_000
    with pytest.raises(AdapterError, match="a line of more than 1048576 bytes"):
        ask(adapter, "bad", length="100000000")


def test_much_on_standard_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    flood = "[os.write(2, b'-' * 1_000_000) for _ in range(20)]"
    assert ask(make(f"{flood}; say(id='bad', outcome='accept')"), "bad")["outcome"] == "accept"
    monkeypatch.setattr(client, "_KEPT", 1 << 20)
    with pytest.raises(AdapterError, match=r"-its last words$"):
        ask(make(f"{flood}; time.sleep(0.3); {flood}; sys.exit('its last words')"), "bad")


def test_an_answer_too_many(make: Make) -> None:
    adapter = make("say(id='bad', outcome='accept'); say(id='bad', outcome='accept')")
    assert ask(adapter, "bad")["outcome"] == "accept"
    with pytest.raises(AdapterError, match="no reply to other"):
        ask(adapter, "other")
    assert ask(adapter, "other")["outcome"] == "accept"


def test_one_that_ends_behind_an_answer(make: Make) -> None:
    adapter = make("say(id='bad', outcome='accept'); sys.exit('enough')")
    assert ask(adapter, "bad")["outcome"] == "accept"
    with pytest.raises(AdapterError, match="exit code 1: enough") as caught:
        ask(adapter, "other")
    assert caught.value.outcome == "crash"
    assert ask(adapter, "other")["outcome"] == "accept"


@pytest.mark.parametrize("end", ["os._exit(1)", "time.sleep(60)"])
def test_its_children_end_with_it(make: Make, tmp_path: Path, end: str) -> None:
    """Even one that holds its standard output open, so that there is no end of it."""
    adapter = make(
        "child = subprocess.Popen(['sleep', '60']);"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); {end}",
        seconds=10 if "exit" in end else 2,
    )
    with pytest.raises(AdapterError) as caught:
        ask(adapter, "bad")
    assert caught.value.outcome == ("crash" if "exit" in end else "timeout")
    assert ends(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("hello", "why"),
    [
        ("sys.exit('no licence')", "exit code 1: no licence"),
        ("say(protocol=1)", "hello without implementation, roles"),
        (f"say(**{ {**HELLO, 'protocol': 2} })", "it speaks protocol 2"),
        (f"say(**{ {**HELLO, 'implementation': 'me'} })", "without name and version"),
        (f"say(**{ {**HELLO, 'implementation': {'name': 'me'}} })", "without name and version"),
        (f"say(**{ {**HELLO, 'roles': 'reader'} })", "roles is not a list of words"),
        (f"say(**{ {**HELLO, 'features': [1]} })", "features is not a list of words"),
        (f"say(**{ {**HELLO, 'says': None} })", "says is not a list of words"),
        ("print('Welcome', flush=True)", "Welcome"),
    ],
)
def test_no_hello(make: Make, hello: str, why: str) -> None:
    adapter = make(hello=hello)
    for _ in range(2):
        with pytest.raises(AdapterError, match=why):
            ask(adapter, "other")
    assert adapter.bye() is None


def test_no_program(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("no program")
    for name, why in (("nowhere", "No such file"), ("plain", "Permission denied"), ("", "denied")):
        with pytest.raises(AdapterError, match=why) as caught:
            Adapter([str(tmp_path / name)], seconds=1).hello()
        assert caught.value.outcome == "error"


@pytest.mark.parametrize(
    ("end", "code"), [("sys.exit(3)", 3), ("time.sleep(60)", None), ("os.abort()", -6)]
)
@pytest.mark.parametrize("word", [True, False])
def test_bye(make: Make, end: str, code: int | None, word: bool) -> None:
    adapter = make("say(id='bad', outcome=str(os.getpid()))", end=end)
    pid = int(ask(adapter, "bad")["outcome"])
    assert adapter.bye(word=word) == code
    assert ends(pid)


def test_interrupted_from_another_thread(make: Make) -> None:
    adapter = make("time.sleep(60)")
    ask(adapter, "other")
    timer = threading.Timer(0.2, adapter.interrupt)
    timer.start()
    with pytest.raises(AdapterError, match="SIGKILL"):
        ask(adapter, "bad")
    timer.join()


SERVED = """
import os, subprocess, sys
from savevm_conformance.protocol.serve import serve

def reader(case):
    match case["id"]:
        case "prints":
            print("hello", flush=True)
            os.write(1, b"hello")
            subprocess.run(["echo", "hello"])
        case "reads":
            assert subprocess.run(["cat"], capture_output=True).stdout == sys.stdin.read().encode() == b""
        case "raises":
            raise LookupError("no such thing")
        case "allocates":
            raise MemoryError
        case "leaves":
            sys.exit(0)
    return {"outcome": "accept"}

serve("served", "2", {"reader": reader}, features=("ram-4",), says=("class",), url="https://example.org")
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Adapter]:
    (tmp_path / "served.py").write_text(SERVED)
    adapter = Adapter([sys.executable, str(tmp_path / "served.py")], seconds=20)
    yield adapter
    adapter.kill()


def test_serve(served: Adapter) -> None:
    assert served.hello() == {
        "protocol": PROTOCOL,
        "implementation": {"name": "served", "version": "2", "url": "https://example.org"},
        "roles": ["reader"],
        "features": ["ram-4"],
        "says": ["class"],
    }
    for id in ("prints", "reads", "plain"):
        assert ask(served, id) == {"id": id, "outcome": "accept"}
    assert ask(served, "allocates") == {
        "id": "allocates",
        "outcome": "memory",
        "why": "MemoryError",
    }
    raised = ask(served, "raises")
    assert raised["outcome"] == "error"
    assert raised["why"].endswith("LookupError: no such thing")
    skipped = served.case({"id": "w", "role": "writer", "state": "/", "output": "/"})
    assert skipped == {"id": "w", "outcome": "skip", "why": "no writer"}
    with pytest.raises(AdapterError, match="exit code 0") as caught:
        ask(served, "leaves")
    assert caught.value.outcome == "crash"
    assert ask(served, "plain")["outcome"] == "accept"
    assert served.bye() == 0


def test_serve_ends_with_its_input(served: Adapter) -> None:
    served.hello()
    assert served.bye(word=False) == 0


def validator(definition: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/$defs/{definition}", "$defs": schema()["$defs"]})


def test_the_schema_and_the_code_have_the_same_words() -> None:
    Draft202012Validator.check_schema(schema())
    defs = schema()["$defs"]
    hello = defs["hello-reply"]["properties"]
    assert tuple(defs["role"]["enum"]) == ROLES
    assert tuple(hello["says"]["items"]["enum"]) == SAYS
    assert tuple(hello["features"]["items"]["enum"]) == FEATURES
    assert set(defs["reject"]["properties"]["class"]["enum"]) == set(CLASSES.values())
    assert {*defs["failure"]["properties"]["outcome"]["enum"], "skip"} == set(NO_ANSWER)
    assert set(SAYS) <= defs["accept"]["properties"].keys() | defs["reject"]["properties"].keys()


@pytest.mark.parametrize("target", OURS)
def test_what_ours_say_is_of_the_schema(target: str, tmp_path: Path) -> None:
    adapter = Adapter(command_of(target), seconds=60)
    request, reply = validator("request"), validator("case-reply")
    try:
        hello = adapter.hello()
        validator("hello-reply").validate(hello)
        for case in load_cases(vectors_directory()):
            role = case.roles[0]
            if role not in hello["roles"]:
                continue
            message: dict[str, Any] = {"id": case.id, "role": role}
            if role == "writer":
                message |= {"state": str(case.state), "output": str(tmp_path / "output")}
            else:
                message |= {"stream": str(case.stream)}
            if case.machine:
                message |= {"machine": case.machine}
            request.validate({"cmd": "case", **message})
            answer = adapter.case(message)
            assert answer["outcome"] in ("accept", "reject", "written")
            reply.validate(answer)
    finally:
        adapter.bye()


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ("request", {"cmd": "hello"}),
        ("request", {"cmd": "hello", "protocol": 2}),
        ("request", {"cmd": "goodbye"}),
        ("request", {"cmd": "case", "id": "a", "role": "reader"}),
        ("request", {"cmd": "case", "id": "a", "role": "writer", "state": "/s"}),
        ("request", {"cmd": "case", "id": "a", "role": "peer", "stream": "/s", "output": "/o"}),
        ("request", {"cmd": "case", "id": "a", "role": "listener", "stream": "/s"}),
        ("request", {"cmd": "case", "id": "a", "role": "loader", "stream": "/s", "machine": {}}),
        ("hello-reply", {"protocol": 1, "implementation": {"name": "a", "version": "1"}}),
        ("hello-reply", {**HELLO, "roles": []}),
        ("hello-reply", {**HELLO, "roles": ["reader", "reader"]}),
        ("hello-reply", {**HELLO, "features": ["ram-5"]}),
        ("hello-reply", {**HELLO, "says": ["errno"]}),
        ("hello-reply", {**HELLO, "motto": "none"}),
        ("case-reply", {"id": "a"}),
        ("case-reply", {"id": "a", "outcome": "ok"}),
        ("case-reply", {"id": "a", "outcome": "accept", "class": "malformed"}),
        ("case-reply", {"id": "a", "outcome": "accept", "records": ["header 3"]}),
        ("case-reply", {"id": "a", "outcome": "accept", "ram": {"ram": "ABC"}}),
        ("case-reply", {"id": "a", "outcome": "accept", "findings": [{"rule": "x"}]}),
        ("case-reply", {"id": "a", "outcome": "reject", "class": "EIO"}),
        ("case-reply", {"id": "a", "outcome": "reject", "offset": -1}),
        ("case-reply", {"id": "a", "outcome": "written", "output": "/o"}),
        ("case-reply", {"id": "a", "outcome": "skip"}),
        ("case-reply", {"id": "a", "outcome": "crash"}),
    ],
)
def test_the_schema_refuses(definition: str, message: dict[str, Any]) -> None:
    assert not validator(definition).is_valid(message)
