"""A stream that ends too early is noticed, wherever that is: the grammar knows by which rule."""

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from verdicts import agreed, good

from savevm_fuzz.mutations import mutate
from savevm_fuzz.seeds import Seed
from savevm_fuzz.strategies import streams
from savevm_spec.dialects import DIALECTS
from savevm_spec.fields import Field

# Bytes: of streams that are cut at every byte, and of those that are cut in every field.
TINY = 192
SMALL = 3000


def framed(seed: Seed, told: dict[str, Any]) -> bool:
    """Whether what lies in front does not depend on what is cut off.

    Bodies without footers end where the stream does, those that only a description delimits where
    that says, and what a record of version 2 has behind its body where the record does.
    """
    return (
        told["dialect"] in ("v3-vmdesc", "v3-configuration")
        and not told["findings"]
        and not any(field.path == "body.vmdescription.text" for field in seed.fields)
        and any(field.path.endswith("footer.mark") for field in seed.fields)
    )


def places(seed: Seed) -> Iterator[tuple[Field, int]]:
    """Before each field and within it, for fields of each path and section once."""
    seen = set()
    for field in seed.fields:
        if (field.path, field.section) not in seen:
            seen.add((field.path, field.section))
            yield from ((field, cut) for cut in {field.offset, field.offset + field.length // 2})


def noticed(data: bytes) -> dict[str, Any]:
    """The verdict on what is the beginning of a good stream."""
    told = agreed(data)
    if told["outcome"] == "reject":
        assert told["class"] == "truncated", told
        # Only the last byte can be that which should have been the EOF mark.
        last = told["rule"] == "stream.eof-mark"
        assert told["offset"] in ((len(data) - 1, len(data)) if last else (len(data),)), told
        return told
    # It ended before, or between two records that nothing counts, or nothing says where it ends.
    kind = told["records"][-1].split()[1]
    undelimited = any(finding["rule"] == "stream.undelimited" for finding in told["findings"])
    assert kind in ("eof", "vmdescription") or undelimited or told["dialect"] in ("v1", "v2"), told
    return told


def foreseen(field: Field, cut: int, got: dict[str, Any]) -> bool:
    """Whether the verdict is what the field says, if that is where the cut is."""
    if cut == field.offset or not field.path:
        return True
    told = got["outcome"], got.get("rule"), got.get("offset"), got.get("section")
    return told == ("reject", field.truncated, cut, field.section)


CASES = [case for case in good() if len(case[0].data) <= SMALL]
FEW = [case for case in CASES if len(case[0].data) <= TINY]


def name(case: tuple[Seed, dict[str, Any]]) -> str:
    return case[0].name


@pytest.mark.parametrize(("seed", "told"), CASES, ids=map(name, CASES))
def test_cut_in_every_field(seed: Seed, told: dict[str, Any]) -> None:
    exact = framed(seed, told)
    for field, cut in places(seed):
        got = noticed(seed.data[:cut])
        assert not exact or foreseen(field, cut, got)


@pytest.mark.parametrize(("seed", "told"), FEW, ids=map(name, FEW))
def test_cut_at_every_byte(seed: Seed, told: dict[str, Any]) -> None:
    for cut in range(len(seed.data)):
        got = noticed(seed.data[:cut])
        # In the oldest ones a body is read as what follows it suggests, the EOF mark for one.
        if got["outcome"] == "accept" and told["dialect"] != "v3-2008":
            kept = [line for line in got["records"] if int(line.split()[0]) < cut]
            assert told["records"][: len(kept)] == kept


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=max(1, settings().max_examples // 2))
@given(st.data())
def test_streams_of_the_grammar_cut_in_every_field(dialect: str, data: st.DataObject) -> None:
    stream = data.draw(streams(dialect).filter(lambda stream: len(stream) <= SMALL))
    seed = Seed(dialect, stream)
    exact = framed(seed, agreed(stream))
    for field, cut in places(seed):
        # Without a footer or the description, a body can be read as something else that is wrong.
        got = noticed(stream[:cut]) if exact else agreed(stream[:cut])
        assert not exact or foreseen(field, cut, got)


@settings(max_examples=5 * settings().max_examples)
@given(
    st.sampled_from([seed for seed, _ in CASES]),
    st.integers(0, (1 << 64) - 1),
    st.data(),
)
def test_broken_ones_cut_anywhere(seed: Seed, number: int, data: st.DataObject) -> None:
    mutant = mutate(seed, Random(number), [seed], 1).data
    agreed(mutant[: data.draw(st.integers(0, len(mutant)))])
