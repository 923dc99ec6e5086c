"""`reval eval`, the record it writes, and the evaluations of a training run."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from support import tiny_runs

from reval_jax import cli, config, evaluate, types, weights
from reval_jax.evaluate import record

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT.parent / "shared" / "data" / "benchmarks"
DOCUMENT = ROOT / "docs" / "evaluation.md"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_runs.write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def run_dir(files):
    """A run of two rounds, saved after each; evaluated at rounds 0 and 2."""
    path = files.parent / "run"
    tiny_runs.play(files, path, run__rounds=2, checkpoint__every=1)
    return path


def evaluated(file, *arguments):
    """The record that `reval eval` writes; fails on a number that is not valid JSON."""
    assert cli.main(["eval", *map(str, arguments), "--json", str(file)]) == 0
    return json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.fixture(scope="module")
def compared(run_dir, tmp_path_factory):
    """The record of rounds 0, 1 and 2 of the run."""
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


def test_all_policies_of_an_evaluation_answer_the_prompts_of_the_first_ones_date(run_dir, files, tmp_path):
    later = tmp_path / "later"
    shutil.copytree(run_dir, later)
    # Without the checksum and the copy, as a user edits it.
    (later / "config_copy.yaml").unlink()
    lines = (later / "config.yaml").read_text().splitlines(keepends=True)[:-1]
    (later / "config.yaml").write_text(re.sub("template_date: .*", "template_date: '2024-02-29'", "".join(lines)))
    today = yaml.safe_load((run_dir / "config.yaml").read_text())["about"]["template_date"]
    assert evaluated(tmp_path / "a.json", "--run-dir", later, run_dir)["protocol"]["template_date"] == "2024-02-29"
    assert evaluated(tmp_path / "b.json", "--run-dir", run_dir, later)["protocol"]["template_date"] == today


def test_every_metric_but_the_standard_error_has_an_interval_around_it(compared):
    for result in compared["results"]:
        metrics = [name for name in result if name.startswith("val-core/") and not name.endswith(("/low", "/high"))]
        assert len(metrics) == 9
        for name in metrics:
            if not name.endswith("standard_error"):
                assert result[f"{name}/low"] <= result[name] <= result[f"{name}/high"]


def test_the_records_metrics_follow_from_its_responses(compared):
    """Computed by hand for 2 problems with 4 responses each."""
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
    prompts = [[problem["prompt_sha256"] for problem in result["problems"]] for result in compared["results"]]
    assert prompts[0] == prompts[1] == prompts[2]
    assert [(each["policy"], each["baseline"]) for each in compared["comparisons"]] == [(1, 0), (2, 0)]
    first, *others = compared["results"]
    for each, result in zip(compared["comparisons"], others, strict=True):
        for name, difference in each["differences"].items():
            assert difference["value"] == pytest.approx(result[name] - first[name], abs=1e-6)
            assert difference["low"] <= difference["value"] <= difference["high"]


def test_eval_repeats_the_metrics_that_the_run_wrote(compared, run_dir):
    """The metrics of the base model are those of round 0."""
    lines = {line["training/round"]: line for line in tiny_runs.metrics_lines(run_dir)}
    for policy, result in zip(compared["policies"], compared["results"], strict=True):
        written = {name: value for name, value in lines[policy["round"]].items() if name.startswith("val-core/")}
        assert bool(written) == (policy["round"] in (0, 2))
        assert {name: result[name] for name in written} == written


def test_the_command_in_a_record_repeats_it(compared, tmp_path):
    program, command, *words = compared["command"].split()
    assert (program, command) == ("reval", "eval")
    again = evaluated(tmp_path / "again.json", *words[: words.index("--json")])
    for key in compared.keys() - {"command"}:
        assert again[key] == compared[key]


def test_runs_are_compared_and_their_common_base_model_appears_once(run_dir, files, tmp_path, capsys):
    other = files.parent / "other"
    tiny_runs.play(files, other, run__rounds=1, run__seed=5, eval__every=0)
    written = evaluated(tmp_path / "e.json", "--run-dir", run_dir, other, "--round", 0, 1)
    assert [(each["run_dir"], each["round"]) for each in written["policies"]] == [
        (str(run_dir), 0),
        (str(run_dir), 1),
        (str(other), 1),
    ]
    output = capsys.readouterr().out
    assert output.count("held_out: avg@4 = ") == 3
    assert output.count("minus policy 0: held_out: avg@4 ") == 2
    assert "note:" not in output


def test_a_setting_that_differs_from_the_runs_is_named(run_dir, tmp_path, capsys):
    evaluated(tmp_path / "e.json", "--run-dir", run_dir, "--task.answer_format", "boxed")
    assert "task.answer_format: first_number -> boxed" in capsys.readouterr().out


def test_published_weights_need_no_run(files, tmp_path):
    written = evaluated(tmp_path / "e.json", "--config", files)
    (policy,) = written["policies"]
    assert (policy["run_dir"], policy["round"]) == (None, 0)
    assert written["comparisons"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--round", "0", "9"), "no checkpoint of round 9 exists; saved rounds: [1, 2]"),
        (("--round", "0", "--round", "1"), "--round appears 2 times"),
        (("--run_dir", "elsewhere"), "--run_dir appears 2 times"),
        (("--json", "absent/e.json"), "--json absent/e.json cannot be written"),
    ],
)
def test_a_wrong_request_is_refused_before_any_sampling(run_dir, capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "run", lambda *_, **__: pytest.fail("something was sampled"))
    assert cli.main(["eval", "--run-dir", str(run_dir), *words]) == 2
    assert message in capsys.readouterr().err


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


def test_a_fingerprint_is_the_same_on_every_mesh(files):
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


@pytest.mark.slow
@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="../shared/data/benchmarks is not beside the repository")
def test_the_real_model_is_evaluated_on_every_shared_benchmark(smollm2, tmp_path):
    """One problem each, cut at 16 tokens: tests that the evaluation runs and its record is complete, not the score."""
    files = sorted(BENCHMARKS.glob("*.jsonl"))
    words = ["--model.path", smollm2, "--model.compute_dtype", "float32", "--task.max_prompt_tokens", 2048]
    words += ["--rollout.max_response_tokens", 16, "--rollout.decode_slots", 2, "--eval.max_prompts", 1]
    words += ["--eval.samples_per_prompt", 2, "--json", tmp_path / "e.json", "--eval.benchmarks", *files]
    # In a subprocess with one device: the eight devices of this process would hold eight copies of the model.
    subprocess.run(
        [sys.executable, "-m", "reval_jax", "eval", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    written = json.loads((tmp_path / "e.json").read_text())
    assert written.keys() == documented("The record")
    assert [result["benchmark"] for result in written["results"]] == [file.stem for file in files]
    for file, result in zip(files, written["results"], strict=True):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert result["num_rows"] == len(rows)
        assert [len(problem["rewards"]) for problem in result["problems"]] == [2]
        assert all(problem["gold"] == rows[problem["row"]]["answer"] for problem in result["problems"])
        assert sum(result["verdicts"].values()) == 2
