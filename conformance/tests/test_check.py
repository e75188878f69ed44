"""``check-adapter`` and ``smoke``: what is wrong with an adapter is found before it is believed."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import savevm_conformance
from savevm_conformance.cli import conformance
from savevm_conformance.protocol import client
from savevm_conformance.targets import OURS, command_of

TEMPLATE = Path(savevm_conformance.__file__).parent / "templates" / "adapter.py"
# Right in all, but for what is put into the gaps.
PROGRAM = """
import json, os, sys, time
hellos = 0
for line in sys.stdin:
    message = json.loads(line)
    if message["cmd"] == "bye":
        {bye}
    if message["cmd"] == "hello":
        hellos += 1
        reply = {{
            "protocol": 1, "implementation": {{"name": "small", "version": "1"}},
            "roles": ["reader", "writer"], "features": [], "says": ["offset"],
        }}
        {hello}
    elif message["role"] == "reader":
        reply = {{"id": message["id"], "outcome": "accept"}}
        try:
            data = open(message["stream"], "rb").read()
            if data != b"QEVM\\0\\0\\0\\3\\0":
                reply = {{"id": message["id"], "outcome": "reject", "offset": len(data)}}
                {reject}
            {accept}
        except OSError as error:
            reply = {{"id": message["id"], "outcome": "error", "why": str(error)}}
            {nowhere}
    elif message["role"] == "writer":
        reply = {{"id": message["id"], "outcome": "skip", "why": "not today"}}
        {writer}
    else:
        reply = {{"id": message["id"], "outcome": "skip", "why": "not that role"}}
        {other}
    print(json.dumps(reply), flush=True)
{end}
"""


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(conformance, list(arguments))


def check(tmp_path: Path, **gaps: str) -> Result:
    path = tmp_path / "adapter.py"
    filled = dict.fromkeys(("hello", "reject", "accept", "nowhere", "writer", "other"), "pass")
    path.write_text(PROGRAM.format(**{**filled, "bye": "break", "end": "", **gaps}))
    return invoke("check-adapter", sys.executable, str(path))


@pytest.mark.parametrize(
    "argv", [*map(command_of, OURS), [sys.executable, str(TEMPLATE)]], ids=[*OURS, "template"]
)
def test_good_adapters(argv: list[str]) -> None:
    for arguments in (argv, [shlex.join(argv)]):
        result = invoke("check-adapter", *arguments)
        assert result.output == "it speaks the protocol\n"
        assert result.exit_code == 0


def test_another_good_adapter(tmp_path: Path) -> None:
    assert check(tmp_path).output == "it speaks the protocol\n"


@pytest.mark.parametrize(
    ("gap", "code", "problem"),
    [
        ("hello", "sys.exit('no')", "crash: the adapter ended with exit code 1: no"),
        ("hello", "reply['protocol'] = 2", "error: it speaks protocol 2"),
        ("hello", "reply['roles'] = ['reder']", "hello-reply: roles.0: 'reder' is not one of"),
        ("hello", "reply['features'] = ['ram-9']", "hello-reply: features.0: 'ram-9' is not one"),
        ("hello", "reply['since'] = 1", "hello-reply: message: Additional properties"),
        ("hello", "reply['says'] = ['offset'] * (3 - hellos)", "hello-reply: says: "),
        ("hello", "reply['implementation']['version'] = str(hellos)", "a second hello gets"),
        ("accept", "print('reading')", "error: the reply is no JSON object (Expecting value"),
        ("accept", "reply['outcome'] = 'ok'", "the outcome 'ok', of which the protocol"),
        ("accept", "reply['id'] = 1", "error: no reply to header/accept/shortest"),
        ("accept", "reply['ram'] = 'none'", "accept: ram: 'none' is not of type 'object'"),
        ("accept", "reply['outcome'] = 'written'", "written is no outcome of a reader"),
        ("accept", "os.abort()", "crash: the adapter ended with signal SIGABRT"),
        ("reject", "del reply['offset']", "reject without offset, which hello says that it says"),
        ("reject", "reply['offset'] = -1", "reject: offset: -1 is less than the minimum"),
        ("reject", "reply['class'] = 'EIO'", "reject: class: 'EIO' is not one of"),
        ("nowhere", "sys.exit(1)", "no file, reader: crash: the adapter ended with exit code 1"),
        ("nowhere", "reply['outcome'] = 'accept'", "accept, of a file that is not there"),
        (
            "nowhere",
            "reply.pop('why'); reply.update(outcome='reject', offset=0)",
            "reject, of a file that is not there",
        ),
        ("writer", "del reply['why']", "skip: message: 'why' is a required property"),
        ("writer", "reply.pop('why'); reply['outcome'] = 'accept'", "accept is no outcome of a w"),
        (
            "writer",
            "if 'write' in reply['id']: reply = {'id': reply['id'], 'outcome': 'written'}",
            "written, but there is nothing",
        ),
        ("other", "reply['outcome'] = 'error'", "error in a role that it does not have, not skip"),
        ("bye", "sys.exit(3)", "bye: exit code 3, not 0"),
        ("bye", "continue", "bye does not end it"),
        ("bye", "time.sleep(60)", "bye does not end it"),
        ("bye", "print('until then')\n        break", "bye has no reply, but it wrote b'until"),
        ("end", "sys.exit(hellos and 4)", "the end of its input: exit code 4, not 0"),
        ("end", "time.sleep(60)", "the end of its input does not end it"),
    ],
)
def test_bad_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gap: str, code: str, problem: str
) -> None:
    monkeypatch.setattr(client, "END", 0.5)
    result = check(tmp_path, **{gap: code})
    assert problem in result.output
    assert result.output.splitlines()[-1].endswith((" problem", " problems"))
    assert result.exit_code == 1


def test_what_it_says_does_no_harm(tmp_path: Path) -> None:
    result = check(tmp_path, accept="reply['outcome'] = '\\ud800\\x1b[2J'")
    assert result.exit_code == 1
    assert result.output.isprintable() or "\x1b" not in result.output


@pytest.mark.parametrize("command", ["", "'", "  "])
def test_no_command(command: str) -> None:
    assert invoke("check-adapter", command).exit_code == 2


def test_no_such_program() -> None:
    result = invoke("check-adapter", "/nowhere/adapter")
    assert result.exit_code == 1
    assert "/nowhere/adapter: No such file or directory" in result.output


def test_the_template_is_short_and_its_own() -> None:
    lines = TEMPLATE.read_text().splitlines()
    assert len(lines) <= 40
    assert not any("savevm" in line for line in lines)


def test_the_template_passes_what_it_declares() -> None:
    target = f"cmd:{shlex.join([sys.executable, str(TEMPLATE)])}"
    result = invoke("run", "-j", "1", "--json", target)
    assert result.exit_code == 0, result.output
    outcomes = [
        line["outcome"] for line in map(json.loads, result.stdout.splitlines()) if "outcome" in line
    ]
    assert set(outcomes) == {"pass", "skip"}
    assert outcomes.count("pass") > 20


def smoke(target: str) -> list[list[str]]:
    result = invoke("smoke", target)
    assert result.exit_code == 0, result.output
    return [line.split() for line in result.output.splitlines()]


def test_smoke() -> None:
    lines = smoke("reference")
    assert {line[0] for line in lines} == {"pass"}
    assert {line[1].split("/")[1] for line in lines} == {"accept", "reject", "write"}
    assert {line[0] for line in smoke(f"cmd:{sys.executable} {TEMPLATE}")} == {"pass"}


def test_smoke_tells_what_is_wrong(tmp_path: Path) -> None:
    text = TEMPLATE.read_text().replace('"truncated"', '"malformed"')
    (tmp_path / "wrong.py").write_text(text)
    result = invoke("smoke", f"cmd:{sys.executable} {tmp_path / 'wrong.py'}")
    assert result.exit_code == 1
    assert 'class: "malformed", not "truncated"' in result.output


def test_smoke_of_what_can_nothing(tmp_path: Path) -> None:
    reply: dict[str, Any] = {"protocol": 1, "implementation": {"name": "a", "version": "1"}}
    reply |= {"roles": ["peer"], "features": [], "says": []}
    (tmp_path / "adapter.py").write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        f"    reply = {reply}\n"
        "    if 'id' in json.loads(line):\n"
        "        reply = {'id': json.loads(line)['id'], 'outcome': 'skip', 'why': 'never'}\n"
        "    print(json.dumps(reply), flush=True)\n"
    )
    result = invoke("smoke", f"cmd:{sys.executable} {tmp_path / 'adapter.py'}")
    assert result.exit_code == 2
    assert "there is nothing that it can do" in result.output
    assert invoke("smoke", "nobody").exit_code == 2
