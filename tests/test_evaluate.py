"""Evaluation: the estimators by enumeration, the intervals by simulation, `reval eval` and the record it writes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny_runs

from reval_jax import cli, config, data, evaluate, types, weights
from reval_jax.evaluate import estimators, intervals, record

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT.parent / "shared" / "data" / "benchmarks"
DOCUMENT = ROOT / "docs" / "evaluation.md"
OK, WRONG = types.VERDICTS.index("ok"), types.VERDICTS.index("wrong")


def graded(reward, answer=None, verdict=None, length=None, is_truncated=None):
    """Graded responses with [P, n] rewards; without other answers, the answer of a response is the text of its reward."""
    reward = np.asarray(reward, np.float32)
    return estimators.GradedResponses(
        reward=reward,
        answer=tuple(map(tuple, answer)) if answer else tuple(tuple(str(each) for each in row) for row in reward),
        verdict=np.where(reward > 0, OK, WRONG).astype(np.int8) if verdict is None else np.asarray(verdict, np.int8),
        length=np.full(reward.shape, 3, np.int32) if length is None else np.asarray(length, np.int32),
        is_truncated=np.zeros(reward.shape, bool) if is_truncated is None else np.asarray(is_truncated),
    )


# --- estimators


@given(reward=st.lists(st.sampled_from([0, 0.25, 1]), min_size=1, max_size=8), data=st.data())
@settings(max_examples=150, deadline=None)
def test_pass_at_k_is_the_mean_best_reward_of_every_subset_of_k(reward, data):
    k = data.draw(st.integers(1, len(reward)))
    best = [Fraction(max(subset)) for subset in itertools.combinations(reward, k)]
    expected = float(sum(best) / len(best))
    np.testing.assert_allclose(estimators.pass_at(np.array(reward), k), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("num", "right", "k"), [(16, 3, 4), (200, 1, 100), (1024, 7, 512), (1024, 1, 1024)])
def test_pass_at_k_of_right_and_wrong_is_the_formula_of_chen_et_al_in_whole_numbers(num, right, k):
    expected = 1 - Fraction(math.comb(num - right, k), math.comb(num, k))
    found = estimators.pass_at(np.repeat([0.0, 1.0], [num - right, right]), k)
    np.testing.assert_allclose(found, float(expected), rtol=1e-11)


def test_pass_at_k_does_not_mind_the_order_of_responses_or_how_many_problems_are_asked():
    generator = np.random.default_rng(0)
    reward = (generator.random((5, 12)) < 0.3).astype(np.float32)
    shuffled = generator.permuted(reward, axis=1)
    np.testing.assert_array_equal(estimators.pass_at(reward, 4), estimators.pass_at(shuffled, 4))
    np.testing.assert_array_equal(estimators.pass_at(reward, 4), [estimators.pass_at(row, 4) for row in reward])


def test_pass_at_1_is_avg_at_n_and_pass_at_n_says_whether_any_response_is_right():
    reward = np.array([[0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], np.float32)
    np.testing.assert_allclose(estimators.pass_at(reward, 1), [0.25, 0, 1], rtol=1e-15)
    np.testing.assert_allclose(estimators.pass_at(reward, 4), [1, 0, 1], rtol=1e-15)


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_a_k_that_was_not_sampled_is_refused(k):
    with pytest.raises(ValueError, match=r"Use a k from 1 to 4"):
        estimators.pass_at(np.zeros(4), k)


@pytest.mark.parametrize(
    ("answer", "reward", "expected"),
    [
        (["7", "7", "8"], [1, 1, 0], 1),
        (["7", "8", "8"], [1, 0, 0], 0),
        (["7", "8"], [1, 0], 1 / 2),  # a tie is worth what drawing one of the tied would give
        (["7", "8", "9"], [1, 0, 0], 1 / 3),
        (["7", "7", "8", "8", "9"], [1, 1, 0, 0, 0], 1 / 2),
        (["", "", "", "7"], [0, 0, 0, 1], 1),  # who has no answer does not vote
        (["", ""], [0, 0], 0),
        (["7"], [1], 1),
        (["7", "7.0", "8", "8", "8"], [1, 1, 0, 0, 0], 0),  # two right answers of other normal forms don't add up
        (["a", "a", "b"], [0.5, 1, 0], 3 / 4),  # an answer is worth what its responses were given
    ],
)
def test_maj_at_n_by_hand(answer, reward, expected):
    (found,) = estimators.maj_at(np.array(reward, np.float32), answer, len(answer))
    assert found == pytest.approx(expected, rel=1e-12)


def test_maj_at_k_takes_groups_of_k_in_sample_order():
    found = estimators.maj_at(np.array([1, 0, 1, 1, 0, 0], np.float32), ["7", "8", "7", "7", "9", "8"], 2)
    np.testing.assert_array_equal(found, [0.5, 1, 0])
    with pytest.raises(ValueError, match="Use a divisor of 6"):
        estimators.maj_at(np.zeros(6, np.float32), ["7"] * 6, 4)


@pytest.mark.parametrize(
    ("num", "expected"),
    [(1, ()), (2, (2,)), (16, (2, 4, 8, 16)), (12, (2, 4, 12)), (15, (15,)), (96, (2, 4, 8, 16, 32, 96))],
)
def test_group_sizes_are_powers_of_two_that_divide_n_and_n(num, expected):
    assert estimators.group_sizes(num) == expected


def test_responses_without_an_answer_are_those_without_a_readable_one():
    verdict = [[types.VERDICTS.index(kind) for kind in types.VERDICTS]]
    shares = estimators.by_problem(graded([[1] + [0] * 7], verdict=verdict))
    assert shares["verifier/no_answer_ratio"] == 3 / 8, "no_box, unparsed, unclosed_think"


def test_a_benchmarks_value_is_the_mean_over_problems():
    seen = graded([[1, 0], [0, 0], [1, 1]], length=[[3, 5], [1, 1], [2, 6]], is_truncated=[[0, 1], [0, 0], [1, 1]])
    found = {name: estimate.value for name, estimate in intervals.estimates(seen).items()}
    expected = {
        "acc/mean@2": 1 / 2,
        "acc/pass@2": 2 / 3,
        "acc/maj@2": 1 / 2,
        "response_length/mean": 3,
        "response_length/clip_ratio": 1 / 2,
        "verifier/no_answer_ratio": 0,
    }
    assert found == pytest.approx(expected, rel=1e-6)


# --- intervals


def test_an_interval_is_that_of_a_plain_bootstrap_over_problems():
    """Against a loop with other random numbers: two estimates of the same quantiles, whose own error is about 0.003."""
    generator = np.random.default_rng(3)
    reward = (generator.random((40, 8)) < generator.random((40, 1))).astype(np.float32)
    found = intervals.estimates(graded(reward))["acc/mean@8"]
    by_problem = [sum(map(float, row)) / 8 for row in reward]
    means = sorted(sum(by_problem[i] for i in generator.integers(40, size=40)) / 40 for _ in range(4000))
    assert found.low == pytest.approx(means[100], abs=0.012)
    assert found.high == pytest.approx(means[3899], abs=0.012)


def covered(num_problems, difficulty, num_sets, seed):
    """Shares of simulated benchmarks whose intervals hold the truth, by metric."""
    generator = np.random.default_rng(seed)
    truth = {"acc/mean@4": 0.0, "acc/pass@2": 0.0}
    many = difficulty(generator, 400_000)
    truth["acc/mean@4"], truth["acc/pass@2"] = many.mean(), (1 - (1 - many) ** 2).mean()
    hits = dict.fromkeys(truth, 0)
    for _ in range(num_sets):
        chance = difficulty(generator, num_problems)[:, None]
        found = intervals.estimates(
            graded((generator.random((num_problems, 4)) < chance), answer=[[""] * 4] * num_problems)
        )
        for name, value in truth.items():
            hits[name] += found[name].low <= value <= found[name].high
    return {name: count / num_sets for name, count in hits.items()}


@pytest.mark.slow
def test_intervals_over_problems_hold_the_truth_as_often_as_they_say():
    """300 simulated benchmarks of 60 problems of unequal difficulty: 0.95 has a standard error of 0.013 here."""
    shares = covered(60, lambda generator, size: generator.beta(0.6, 0.9, size), num_sets=300, seed=1)
    assert all(0.95 - 0.04 <= share <= 0.95 + 0.04 for share in shares.values()), shares


def test_an_interval_of_one_problem_is_over_its_responses():
    generator = np.random.default_rng(5)
    reward = (generator.random((1, 400)) < 0.3).astype(np.float32)
    found = intervals.estimates(graded(reward))
    share = reward.mean()
    error = 1.96 * np.sqrt(share * (1 - share) / 400)
    assert found["acc/mean@400"].low == pytest.approx(share - error, abs=0.01)
    assert found["acc/mean@400"].high == pytest.approx(share + error, abs=0.01)
    pairs = [1 - (1 - share + sign * error) ** 2 for sign in (1, -1)]
    assert found["acc/pass@2"].low == pytest.approx(pairs[0], abs=0.015)
    assert found["acc/pass@2"].high == pytest.approx(pairs[1], abs=0.015)
    assert found["acc/maj@2"].low < found["acc/maj@2"].value < found["acc/maj@2"].high
    assert np.isnan(found["acc/maj@400"].low), "400 responses have one majority: nothing to resample"


def test_one_response_has_no_interval():
    (found,) = (estimate for name, estimate in intervals.estimates(graded([[1]])).items() if name == "acc/mean@1")
    assert found.value == 1
    assert np.isnan(found.low)
    assert np.isnan(found.high)


def test_the_same_outcomes_give_the_same_interval_and_a_constant_gives_no_width():
    seen = graded([[1, 0], [0, 0], [1, 1]])
    assert intervals.estimates(seen) == intervals.estimates(seen)
    assert intervals.estimates(graded([[1, 1], [1, 1]]))["acc/mean@2"] == (1, 1, 1)


def test_a_bootstrap_in_blocks_is_the_bootstrap(monkeypatch):
    units = np.random.default_rng(0).random((30, 2))
    whole = intervals.bootstrap(units, lambda drawn: drawn.mean(axis=1), stream=0)
    monkeypatch.setattr(intervals, "BLOCK_BYTES", 7 * units.nbytes)
    np.testing.assert_array_equal(whole, intervals.bootstrap(units, lambda drawn: drawn.mean(axis=1), stream=0))


def test_every_unit_is_drawn_equally_often_and_two_streams_share_nothing():
    drawn = [intervals.bootstrap(np.arange(7), lambda each: each, stream=stream) for stream in (0, 1)]
    assert drawn[0].shape == (intervals.RESAMPLES, 7)
    counts = np.bincount(drawn[0].ravel(), minlength=7)
    expected = intervals.RESAMPLES
    assert ((counts - expected) ** 2 / expected).sum() < 22.5, "chi-squared of 6 degrees of freedom, 0.1%"
    assert (drawn[0] == drawn[1]).mean() == pytest.approx(1 / 7, abs=0.015)


def test_a_paired_interval_is_narrower_than_an_unpaired_one_where_problems_differ():
    """Two policies that find the same problems hard: pairing takes out the problems' variance."""
    generator = np.random.default_rng(2)
    chance = generator.beta(0.4, 0.4, (50, 1))
    one, other = (
        graded((generator.random((50, 16)) < np.clip(chance + gain, 0, 1)).astype(np.float32)) for gain in (0.05, 0.0)
    )
    paired = intervals.differences(one, other)["acc/mean@16"]
    apart = [intervals.estimates(each)["acc/mean@16"] for each in (one, other)]
    unpaired = math.hypot(*(each.high - each.low for each in apart))
    assert paired.high - paired.low < unpaired / 2
    assert paired.value == pytest.approx(apart[0].value - apart[1].value, abs=1e-6)
    assert paired.low < paired.value < paired.high


@pytest.mark.slow
def test_paired_intervals_hold_the_truth_as_often_as_they_say():
    generator, hits, gain = np.random.default_rng(4), 0, 0.1
    for _ in range(300):
        chance = generator.uniform(0, 0.9, (60, 1))
        one, other = (graded(generator.random((60, 4)) < chance + each, answer=[[""] * 4] * 60) for each in (gain, 0.0))
        found = intervals.differences(one, other)["acc/mean@4"]
        hits += found.low <= gain <= found.high
    assert 0.91 <= hits / 300 <= 0.99


def test_a_policy_does_not_differ_from_itself_and_a_comparison_turns_its_sign():
    one, other = graded([[1, 0], [0, 0], [1, 1]]), graded([[1, 1], [0, 1], [1, 1]])
    assert set(intervals.differences(one, one).values()) == {(0, 0, 0)}
    there, back = (intervals.differences(*pair)["acc/mean@2"] for pair in ((one, other), (other, one)))
    assert there == pytest.approx((-back.value, -back.high, -back.low))


def test_on_one_problem_the_responses_are_resampled_apart():
    generator = np.random.default_rng(6)
    one, other = (graded(generator.random((1, 400)) < chance) for chance in (0.6, 0.4))
    found = intervals.differences(one, other)["acc/mean@400"]
    spread = sum(np.var(each.reward) / 400 for each in (one, other))
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(spread), rel=0.1)


def test_outcomes_of_other_numbers_are_not_paired():
    with pytest.raises(ValueError, match="pairs need the same problems"):
        intervals.differences(graded([[1, 0]]), graded([[1], [0]]))


# --- a run, and `reval eval`


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_runs.write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def run_dir(files):
    """Two rounds, each saved; evaluated at 0 and at 2."""
    path = files.parent / "run"
    tiny_runs.play(files, path, run__rounds=2, checkpoint__every=1)
    return path


def evaluated(file, *arguments):
    """The record `reval eval` writes, every number in it JSON's."""
    assert cli.main(["eval", *map(str, arguments), "--json", str(file)]) == 0
    return json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.fixture(scope="module")
def compared(run_dir, tmp_path_factory):
    """Rounds 0, 1 and 2 of the run."""
    return evaluated(tmp_path_factory.mktemp("eval") / "e.json", "--run-dir", run_dir, "--round", 0, 1, 2)


def documented(heading):
    """The keys in the first column of the table under a heading of docs/evaluation.md."""
    section = DOCUMENT.read_text(encoding="utf-8").split(f"### {heading}\n")[1].split("\n#")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row)}


def test_the_record_has_the_documented_keys_and_no_others(compared):
    assert compared.keys() == documented("The record")
    assert compared["protocol"].keys() == documented("`protocol`")
    assert all(policy.keys() == documented("`policies`") for policy in compared["policies"])
    for result in compared["results"]:
        prefix = f"val-core/{result['benchmark']}"
        names = {re.sub(r"@\d+", "@{k}", name.replace(prefix, "val-core/{benchmark}")) for name in result}
        metrics = {name for name in names if name.startswith("val-core/") and not name.endswith(("/low", "/high"))}
        assert names - {f"{name}/{end}" for name in metrics for end in ("low", "high")} == documented("`results`")
        assert all(problem.keys() == documented("`problems`") for problem in result["problems"])
    assert all(each.keys() == documented("`comparisons`") for each in compared["comparisons"])


def test_every_metric_but_the_standard_error_has_an_interval_around_it(compared):
    for result in compared["results"]:
        metrics = [name for name in result if name.startswith("val-core/") and not name.endswith(("/low", "/high"))]
        assert len(metrics) == 9
        for name in metrics:
            if not name.endswith("standard_error"):
                assert result[f"{name}/low"] <= result[name] <= result[f"{name}/high"]


def test_the_records_metrics_follow_from_its_responses(compared):
    """By hand: 2 problems of 4 responses."""
    for result in compared["results"]:
        problems = result["problems"]
        flat = {
            key: [each for problem in problems for each in problem[key]] for key in ("rewards", "lengths", "truncated")
        }
        assert [len(problem["rewards"]) for problem in problems] == [4, 4]
        expected = {
            "acc/mean@4": np.mean(flat["rewards"]),
            "acc/pass@4": np.mean([max(problem["rewards"]) for problem in problems]),
            "acc/pass@2": np.mean([1 - math.comb(4 - round(sum(problem["rewards"])), 2) / 6 for problem in problems]),
            "response_length/mean": np.mean(flat["lengths"]),
            "response_length/clip_ratio": np.mean(flat["truncated"]),
        }
        for name, value in expected.items():
            assert result[f"val-core/held_out/{name}"] == pytest.approx(value, abs=1e-6)
        kinds = [kind for problem in problems for kind in problem["verdicts"]]
        assert result["verdicts"] == {kind: kinds.count(kind) for kind in types.VERDICTS}
        assert all(
            (kind == "ok") == (reward == 1)
            for problem in problems
            for kind, reward in zip(problem["verdicts"], problem["rewards"], strict=True)
        )


def test_the_record_names_the_questions_without_repeating_them(compared, files):
    rows = [json.loads(line) for line in (files.parent / "held_out.jsonl").read_text().splitlines()]
    for result in compared["results"]:
        assert sorted(problem["row"] for problem in result["problems"]) == [0, 1]
        assert all(rows[problem["row"]]["answer"] == problem["gold"] for problem in result["problems"])
    assert rows[0]["question"] not in json.dumps(compared)


def test_rounds_are_compared_on_the_same_problems_and_round_0_is_the_untrained_model(compared, run_dir, files):
    assert [(each["round"], each["run_dir"]) for each in compared["policies"]] == [(i, str(run_dir)) for i in (0, 1, 2)]
    published = weights.load(str(files.parent / "model")).params
    prints = [each["fingerprint"] for each in compared["policies"]]
    assert prints[0] == record.fingerprint(published)
    assert len(set(prints)) == 3
    asked = [[problem["prompt_sha256"] for problem in result["problems"]] for result in compared["results"]]
    assert asked[0] == asked[1] == asked[2]
    assert [(each["policy"], each["baseline"]) for each in compared["comparisons"]] == [(1, 0), (2, 0)]
    first, *others = compared["results"]
    for each, result in zip(compared["comparisons"], others, strict=True):
        for name, difference in each["differences"].items():
            assert difference["value"] == pytest.approx(result[name] - first[name], abs=1e-6)
            assert difference["low"] <= difference["value"] <= difference["high"]


def test_what_the_run_wrote_at_its_rounds_is_what_eval_finds(compared, run_dir):
    """The base model's line is round 0's."""
    lines = {line["training/round"]: line for line in tiny_runs.metrics_lines(run_dir)}
    for policy, result in zip(compared["policies"], compared["results"], strict=True):
        written = {name: value for name, value in lines[policy["round"]].items() if name.startswith("val-core/")}
        assert bool(written) == (policy["round"] in (0, 2))
        assert {name: result[name] for name in written} == written


def test_a_record_is_repeated_by_its_command(compared, tmp_path):
    program, command, *words = compared["command"].split()
    assert (program, command) == ("reval", "eval")
    again = evaluated(tmp_path / "again.json", *words[: words.index("--json")])
    for key in compared.keys() - {"command"}:
        assert again[key] == compared[key]


def test_runs_are_compared_and_the_model_they_began_with_comes_once(run_dir, files, tmp_path, capsys):
    other = files.parent / "other"
    tiny_runs.play(files, other, run__rounds=1, run__seed=5, eval__every=0)
    found = evaluated(tmp_path / "e.json", "--run-dir", run_dir, other, "--round", 0, 1)
    assert [(each["run_dir"], each["round"]) for each in found["policies"]] == [
        (str(run_dir), 0),
        (str(run_dir), 1),
        (str(other), 1),
    ]
    said = capsys.readouterr().out
    assert said.count("held_out: avg@4 = ") == 3
    assert said.count("minus policy 0: held_out: avg@4 ") == 2
    assert "note:" not in said


def test_a_run_that_was_trained_on_other_prompts_is_named(run_dir, tmp_path, capsys):
    evaluated(tmp_path / "e.json", "--run-dir", run_dir, "--task.answer_format", "boxed")
    assert "task.answer_format: first_number -> boxed" in capsys.readouterr().out


def test_published_weights_need_no_run(files, tmp_path):
    found = evaluated(tmp_path / "e.json", "--config", files)
    (policy,) = found["policies"]
    assert (policy["run_dir"], policy["round"]) == (None, 0)
    assert found["comparisons"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--round", "0", "9"), "no checkpoint of round 9 exists; saved rounds: [1, 2]"),
        (("--round", "0", "--round", "1"), "--round appears 2 times"),
        (("--run_dir", "elsewhere"), "--run_dir appears 2 times"),
        (("--json", "absent/e.json"), "--json absent/e.json cannot be written"),
    ],
)
def test_an_evaluation_that_cannot_be_made_is_refused_before_any_sampling(
    run_dir, capsys, monkeypatch, tmp_path, words, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "run", lambda *_, **__: pytest.fail("something was sampled"))
    assert cli.main(["eval", "--run-dir", str(run_dir), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def prepared(tmp_path):
    """Two benchmarks as `data prepare` writes them, one called train and one test."""
    for number, split in enumerate(("train", "test")):
        file = tmp_path / f"{split}.jsonl"
        file.write_text(json.dumps({"question": f"{number}+1=", "answer": str(number + 1)}) + "\n")
        data.prepare([file], tmp_path / f"as_{split}", data.PrepareSettings(split=split))
    return tmp_path


def with_benchmarks(files, *benchmarks, **fields):
    """The settings with other benchmarks."""
    settings = config.load(files)
    chosen = dataclasses.replace(settings.eval, benchmarks=tuple(map(str, benchmarks)), **fields)
    return dataclasses.replace(settings, eval=chosen), weights.read(settings.model.path)[1]


def test_directories_whose_splits_have_different_names_are_evaluated_together(files, prepared):
    settings = with_benchmarks(files, prepared / "as_train", prepared / "as_test", prepared / "test.jsonl")
    train, test, file = evaluate.load(*settings)
    assert [each.name for each in (train, test, file)] == ["as_train", "as_test", "test"]
    assert test.fingerprint == file.fingerprint != train.fingerprint


def test_a_split_that_is_asked_for_is_read_and_a_missing_one_named(files, prepared):
    assert len(evaluate.load(*with_benchmarks(files, prepared / "as_test", split="test"))) == 1
    with pytest.raises(ValueError, match=r"eval\.benchmarks=.*as_train with eval\.split=test can't be read"):
        evaluate.load(*with_benchmarks(files, prepared / "as_train", split="test"))


def test_two_benchmarks_of_one_name_are_refused_and_the_remedies_work(files, prepared):
    again = prepared / "again" / "as_test"
    data.prepare([prepared / "train.jsonl"], again, data.PrepareSettings())
    with pytest.raises(ValueError, match=r"rename a file, or prepare a directory again with another --output"):
        evaluate.load(*with_benchmarks(files, prepared / "as_test", again))
    data.prepare([prepared / "train.jsonl"], prepared / "again" / "other", data.PrepareSettings())
    assert len(evaluate.load(*with_benchmarks(files, prepared / "as_test", prepared / "again" / "other"))) == 2
    arithmetic = "procedural:arithmetic,level=2,split=test"
    different = [arithmetic, *(f"{arithmetic},{key}" for key in ("seed=1", "size=64", "style=raw"))]
    loaded = evaluate.load(*with_benchmarks(files, *different))
    assert len({each.name for each in loaded}) == len({each.fingerprint for each in loaded}) == 4


def test_policies_that_would_be_asked_different_problems_are_not_compared(files):
    settings = config.load(files)
    ours = evaluate.load(settings, weights.read(settings.model.path)[1])
    evaluate.check_same_problems(ours, ours)
    fewer = [ours[0]._replace(num_rows=1)]
    with pytest.raises(ValueError, match="has 1 usable rows with one model's tokenizer and 2"):
        evaluate.check_same_problems(fewer, ours)


def test_two_benchmarks_are_not_compared():
    seen = graded([[1, 0], [0, 0]])
    one, other = (evaluate.Result(name, seen, intervals.estimates(seen), ("",) * 4) for name in ("a", "b"))
    with pytest.raises(ValueError, match="two benchmarks"):
        evaluate.differences(one, other)


def test_a_fingerprint_tells_names_shapes_types_and_bits_apart():
    params = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2, np.float32)}
    same = {"b": params["b"].copy(), "a": params["a"].copy()}
    others = [
        params | {"a": params["a"].T},
        params | {"a": params["a"][::-1]},
        params | {"b": np.zeros(2, np.int32)},
        params | {"b": np.array([0.0, -0.0], np.float32)},
        {"a": params["a"], "c": params["b"]},
    ]
    prints = [record.fingerprint(each) for each in (params, *others)]
    assert record.fingerprint(same) == prints[0]
    assert len(set(prints)) == 6
    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in prints)


def test_a_fingerprint_is_the_same_however_the_devices_share_the_parameters(files):
    import jax

    from reval_jax import mesh, setup

    settings = config.load(files)
    prints = set()
    for axes in (config.Mesh(data=8, fsdp=1), config.Mesh(fsdp=8), config.Mesh(fsdp=4, tensor=2)):
        loaded = weights.load(settings.model.path)
        placed = setup.place_params(loaded.params, loaded.architecture, mesh.make(axes))
        assert len(jax.tree.leaves(placed)[0].sharding.device_set) == 8
        prints.add(record.fingerprint(placed))
    assert len(prints) == 1


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("data/math500.jsonl", "math500"),
        ("procedural:arithmetic,level=2,split=test", "arithmetic_level_2_test"),
    ],
)
def test_a_benchmarks_name_fits_into_a_metrics_name(dataset, name):
    assert data.rows.label(dataset) == name


def test_the_report_draws_intervals(tmp_path):
    """A filled band for each benchmark's avg@k, and none where the ends are missing, as in older runs."""
    pytest.importorskip("matplotlib")
    from reval_jax.tools import report

    lines = [{"training/round": i, "val-core/a/acc/mean@4": 0.5, "val-core/a/acc/mean@2": 0.1} for i in range(3)]
    assert report._held_out(lines, "mean") == ("val-core/a/acc/mean@4",)
    bare = report._figure("avg@k", lines, ("val-core/a/acc/mean@4",))
    banded = report._figure(
        "avg@k",
        [line | {"val-core/a/acc/mean@4/low": 0.4, "val-core/a/acc/mean@4/high": 0.6} for line in lines],
        ("val-core/a/acc/mean@4",),
    )
    assert "FillBetween" not in bare
    assert "FillBetween" in banded


@pytest.mark.slow
@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="../shared/data/benchmarks is not beside the repository")
def test_the_real_model_is_evaluated_on_every_benchmark_at_hand(smollm2, tmp_path):
    """Two problems each, cut at 32 tokens: that it runs and tells everything, not how well the model does."""
    files = sorted(BENCHMARKS.glob("*.jsonl"))
    words = ["--model.path", smollm2, "--model.compute_dtype", "float32", "--task.max_prompt_tokens", 2048]
    words += ["--rollout.max_response_tokens", 32, "--rollout.decode_slots", 4, "--eval.max_prompts", 2]
    words += ["--eval.samples_per_prompt", 2, "--json", tmp_path / "e.json", "--eval.benchmarks", *files]
    # A process of its own has one device: eight would hold eight copies of the model.
    subprocess.run(
        [sys.executable, "-m", "reval_jax", "eval", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    found = json.loads((tmp_path / "e.json").read_text())
    assert found.keys() == documented("The record")
    assert [result["benchmark"] for result in found["results"]] == [file.stem for file in files]
    for file, result in zip(files, found["results"], strict=True):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert result["num_rows"] == len(rows)
        assert [len(problem["rewards"]) for problem in result["problems"]] == [2, 2]
        assert all(problem["gold"] == rows[problem["row"]]["answer"] for problem in result["problems"])
        assert sum(result["verdicts"].values()) == 4
