"""Grammar and reference read the same, write what they read, and write what the other one reads."""

from random import Random
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from verdicts import agreed

from savevm.transcript import rebuild
from savevm_conformance.adapters import spec
from savevm_fuzz.mutations import mutate
from savevm_fuzz.oracle import predict
from savevm_fuzz.seeds import Seed, seeds
from savevm_fuzz.strategies import inexpressible_states, states, streams
from savevm_fuzz.targets import open_target
from savevm_fuzz.writing import look_at_state
from savevm_spec.dialects import DIALECTS
from savevm_spec.rules import rules

SEEDS = [seed for seed in seeds() if len(seed.data) <= 1 << 13]


def both(data: bytes) -> str:
    """The outcome; what is good comes out as it went in, of both."""
    told = agreed(data)
    if told["outcome"] == "reject":
        assert rules()[told["rule"]].violation == "reject"
        assert 0 <= told["offset"] <= len(data)
        return str(told["rule"])
    assert spec.rebuild(data) == data
    assert rebuild(data) == data
    return "accept"


@pytest.mark.parametrize("seed", [pytest.param(s, id=s.name) for s in seeds()])
def test_seeds(seed: Seed) -> None:
    both(seed.data)


@settings(max_examples=20 * settings().max_examples)
@given(
    st.sampled_from(SEEDS),
    st.integers(0, (1 << 64) - 1),
    st.integers(1, 4),
)
def test_changed_seeds(seed: Seed, number: int, times: int) -> None:
    mutant = mutate(seed, Random(number), SEEDS, times)
    for mutation in mutant.mutations:
        note(f"{mutant.seed}: {mutation.what} at {mutation.offset} in {mutation.path}")
    both(mutant.data)


@pytest.mark.parametrize("dialect", DIALECTS)
@given(st.data())
def test_streams_of_the_grammar(dialect: str, data: st.DataObject) -> None:
    stream = data.draw(streams(dialect))
    assert both(stream) == "accept"
    assert predict(stream)["dialect"] == dialect


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=2 * settings().max_examples)
@given(st.data(), st.integers(0, (1 << 64) - 1), st.integers(1, 3))
def test_changed_streams_of_the_grammar(
    dialect: str, data: st.DataObject, number: int, times: int
) -> None:
    seed = Seed(dialect, data.draw(streams(dialect)))
    both(mutate(seed, Random(number), SEEDS, times).data)


@given(states() | inexpressible_states())
def test_what_the_reference_makes_of_a_state(state: dict[str, Any]) -> None:
    target = open_target("reference", seconds=10, memory=1 << 30)
    seen = look_at_state(target, state)
    target.close()
    assert seen.kind is None, seen.lines
