"""The answer pairs of the fault reports beside the repository, each with its right verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reval_jax import verifier
from reval_jax.equality import symbolic

FAULTS = Path(__file__).resolve().parents[2] / "shared" / "faults"
FILES = ("grading_pairs.jsonl", "accepted_hacks.jsonl")

# Right pairs that a rule refuses; docs/grading.md says why.
REFUSED = {
    # A gold (a, b) is a point far more often than an interval.
    ("\\boxed{1 > x > 0}", "(0,1)"),
    ("\\boxed{x>2 \\text{ and } x<5}", "(2,5)"),
}


def reward(pair: dict[str, str]) -> float:
    is_bare = pair["kind"] == "bare"
    grade = verifier.grade(pair["prediction"], pair["gold"], answer_format="boxed", extracted=is_bare)
    return verifier.settle(grade, [symbolic.compare(*one) for one in grade.pairs]).reward


@pytest.mark.skipif(not FAULTS.is_dir(), reason="no shared/faults beside the repository")
def test_no_wrong_answer_is_accepted_and_few_right_ones_are_refused() -> None:
    pairs = [json.loads(line) for name in FILES for line in (FAULTS / name).read_text(encoding="utf-8").splitlines()]
    rewards = [reward(pair) for pair in pairs]
    accepted = [pair for pair, one in zip(pairs, rewards, strict=True) if one and not pair["expected"]]
    assert not accepted
    refused = {
        (pair["prediction"], pair["gold"])
        for pair, one in zip(pairs, rewards, strict=True)
        if not one and pair["expected"]
    }
    assert refused == REFUSED
    assert len(refused) <= 0.05 * sum(bool(pair["expected"]) for pair in pairs)
