"""Profiles of Hypothesis, and several workers that share what they find."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase, MultiplexedDatabase

from savevm_fuzz import profiles

REDIS = shutil.which("redis-server")

SUITE = """
from pathlib import Path
from hypothesis import given, strategies as st
from reader import right
from savevm_fuzz import profiles

profiles.load()

@given(st.binary(min_size=3, max_size=6))
def test_reader(data):
    Path("tried").open("a").write(data.hex() + "\\n")
    assert right(data)
"""
WRONG = "def right(data): return data[:2] <= bytes((9, 77))"
RIGHT = "def right(data): return True"


@pytest.fixture
def loaded() -> Iterator[None]:
    """What is loaded ends with the test."""
    before = settings.get_current_profile_name()
    yield
    settings.load_profile(before)


@pytest.mark.usefixtures("loaded")
def test_ci_is_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(profiles.PROFILE, raising=False)
    monkeypatch.setenv(profiles.DATABASE, "redis://127.0.0.1:1/0")
    assert profiles.load() == "ci"
    assert (settings().derandomize, settings().database) == (True, None)
    assert settings().deadline is None
    assert settings().print_blob


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("name", ["dev", "nightly"])
def test_by_name_with_a_directory(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(profiles.PROFILE, name)
    monkeypatch.delenv(profiles.DATABASE, raising=False)
    assert profiles.load() == name
    assert isinstance(settings().database, DirectoryBasedExampleDatabase)
    monkeypatch.setenv(profiles.DATABASE, str(tmp_path))
    profiles.load()
    database = settings().database
    assert isinstance(database, MultiplexedDatabase)
    database.save(b"key", b"value")
    assert list(DirectoryBasedExampleDatabase(tmp_path).fetch(b"key")) == [b"value"]
    database.delete(b"key", b"value")


def test_what_is_no_place() -> None:
    with pytest.raises(ValueError, match="redis://"):
        profiles.shared("http://example.org/")
    with pytest.raises(KeyError):
        profiles.load("none")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    if REDIS is None:
        pytest.skip("no redis-server on PATH: workers that share a Redis are not tried")
    pytest.importorskip("redis", reason="no package redis: workers that share one are not tried")
    path = tmp_path / "redis"
    path.mkdir()
    place = path / "socket"
    server = subprocess.Popen(
        [REDIS, "--port", "0", "--unixsocket", place, "--dir", path, "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    try:
        while True:
            assert server.poll() is None
            with socket.socket(socket.AF_UNIX) as client:
                if client.connect_ex(str(place)) == 0:
                    break
        yield f"unix://{place}"
    finally:
        server.terminate()
        server.wait()


class Worker:
    """A machine of its own: another directory, with other local examples."""

    def __init__(self, directory: Path, database: str) -> None:
        directory.mkdir()
        (directory / "test_suite.py").write_text(SUITE)
        self.directory = directory
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path if path),
            profiles.PROFILE: "dev",
            profiles.DATABASE: database,
        }

    def run(self, reader: str) -> tuple[int, list[str]]:
        """The exit code of the suite over a ``reader``, and what it tried, in order."""
        (self.directory / "reader.py").write_text(reader)
        tried = self.directory / "tried"
        tried.write_text("")
        code = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_suite.py"],
            cwd=self.directory,
            env=self._environment,
            capture_output=True,
            timeout=300,
        ).returncode
        return code, tried.read_text().split()


def test_workers_share_what_they_find(redis: str, tmp_path: Path) -> None:
    first, second = Worker(tmp_path / "first", redis), Worker(tmp_path / "second", redis)
    code, tried = first.run(WRONG)
    found = tried[-1]
    assert code == 1
    assert len(tried) > 1
    code, tried = second.run(WRONG)
    # Not found again, but tried first.
    assert (code, tried[0]) == (1, found)
    # Mended, it is tried once more.
    code, tried = second.run(RIGHT)
    assert (code, tried[0]) == (0, found)
    assert found not in second.run(RIGHT)[1]
