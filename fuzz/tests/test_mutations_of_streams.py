"""Mutations: always the same, of every kind, and what they may break is what they do break."""

from collections import Counter
from random import Random
from typing import Any

from savevm_fuzz.mutations import Mutant, mutate
from savevm_fuzz.oracle import predict
from savevm_fuzz.seeds import Seed, seeds
from savevm_spec.rules import rules


def mutants(count: int, times: int = 1) -> list[tuple[Seed, Mutant]]:
    random, found = Random(7), seeds()
    chosen = [random.choice(found) for _ in range(count)]
    return [(seed, mutate(seed, random, found, times)) for seed in chosen]


def test_the_same_again() -> None:
    assert mutants(300, 3) == mutants(300, 3)


def test_every_kind_and_most_rules() -> None:
    made = mutants(6000)
    words = Counter(m.mutations[0].what.split()[0] for _, m in made)
    assert {"cut", "record", "left", "there", "the"} <= words.keys()
    broken = {predict(m.data).get("rule") for _, m in made[:3000]}
    assert len(broken & rules().keys()) > 60


def test_something_changes() -> None:
    made = mutants(1000)
    # Of two records that are the same one may take the place of the other.
    assert sum(mutant.data != seed.data for seed, mutant in made) > 980
    assert all(len(mutant.mutations) == 1 for _, mutant in made)


def test_a_seed_without_a_field() -> None:
    assert mutate(Seed("none", b""), Random(1), []).data


def test_predictions() -> None:
    """A change breaks what it says it may, where it is made, or something behind it."""
    here = behind = 0
    for seed, mutant in mutants(6000):
        (mutation,) = mutant.mutations
        before, verdict = predict(seed.data), predict(mutant.data)
        if before["outcome"] == "reject" or verdict["outcome"] == "accept":
            continue
        if verdict["offset"] == mutation.offset:
            here += 1
            assert verdict["rule"] in mutation.rules, (seed.name, mutation, verdict)
        elif not looks_ahead(seed, before):
            behind += 1
            # The offset of a rule about a whole record is that of its first byte.
            record = max(r for r in starts(seed) if r <= mutation.offset)
            assert verdict["offset"] >= record, (seed.name, mutation, verdict)
    assert min(here, behind) > 100


def starts(seed: Seed) -> list[int]:
    return [0, *(f.offset for f in seed.fields if f.path == "body.records.type")]


def looks_ahead(seed: Seed, verdict: dict[str, Any]) -> bool:
    """Whether a reader goes by a description, by what follows a body, or by the length of a record."""
    described = any("vmdescription" in field.path for field in seed.fields)
    undescribed = any("body" in finding["rule"] for finding in verdict["findings"])
    return described or undescribed or verdict["dialect"] != "v3-configuration"
