"""`reval inspect` on a tiny run: its numbers against the model's own logits, its files, and what it refuses."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from support import tiny_programs, tiny_runs

from reval_jax import cli, weights
from reval_jax.tools import inspection
from reval_jax.tools.report import token_file


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_runs.write_files(tmp_path_factory.mktemp("files")).parent


@pytest.fixture(scope="module")
def played(files, tmp_path_factory):
    """A finished run of two rounds, in whose first rollouts file half of the verdicts are `ok`."""
    path = tmp_path_factory.mktemp("runs") / "run"
    tiny_runs.play(files / "config.yaml", path, run__rounds=2, checkpoint__every=1, eval__every=0)
    set_verdicts(path / "rollouts" / "round_000001.jsonl.gz", ["ok", "wrong"])
    set_verdicts(path / "rollouts" / "round_000002.jsonl.gz", ["wrong"])
    return path


def set_verdicts(file, verdicts):
    """Gives the file's lines these verdicts in turn: an untrained model's are all wrong."""
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    for index, row in enumerate(rows):
        row["verdict"] = verdicts[index % len(verdicts)]
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


@pytest.fixture
def run_dir(played):
    """The run, without an inspection."""
    for name in ("inspect.json", "token_scores.jsonl.gz"):
        (played / name).unlink(missing_ok=True)
    return played


def inspected(capsys, *arguments, code=0):
    """Standard output, and standard error, of `reval inspect`."""
    assert cli.main(["inspect", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_every_tokens_numbers_are_those_of_the_initial_models_logits(files, run_dir, capsys, tmp_path):
    text, _ = inspected(capsys, "--run-dir", run_dir, "--round", 1, "--output", tmp_path / "tokens.jsonl")
    loaded = weights.load(str(files / "model"))
    lines = [json.loads(line) for line in (tmp_path / "tokens.jsonl").read_text().splitlines()]
    rollouts = [json.loads(line) for line in tiny_runs.rollouts(run_dir)["round_000001.jsonl"].splitlines()]
    assert [line["response"] for line in lines] == [row["response"] for row in rollouts]
    assert len(lines) == 8
    for line, row in zip(lines, rollouts, strict=True):
        prompt = loaded.tokenizer(row["prompt"], add_special_tokens=False).input_ids
        response = row["tokens"]
        assert line["token_ids"] == response
        assert len(line["tokens"]) == len(response)
        logits = tiny_programs.full_logits(loaded.architecture, loaded.params, np.array([*prompt, *response]))
        predicting = logits[len(prompt) - 1 : -1]
        value = np.log(np.exp(predicting).sum(axis=1))
        log_prob = predicting[np.arange(len(response)), response] - value
        np.testing.assert_allclose(line["log_prob"], log_prob, atol=2e-5)
        np.testing.assert_allclose(line["soft_value"], value, atol=2e-5)
        reward = log_prob + value - np.append(value[1:], 0)
        np.testing.assert_allclose(line["endogenous_reward"], reward, atol=5e-5)
        np.testing.assert_allclose(sum(line["endogenous_reward"]), log_prob.sum() + value[0], atol=1e-4)
        np.testing.assert_allclose(line["scores"]["return"], log_prob.sum() + value[0], atol=1e-4)
    assert "responses have become" not in text


def test_the_table_and_the_json_hold_the_aucs_of_every_score(run_dir, capsys, tmp_path):
    text, _ = inspected(capsys, "--run-dir", run_dir, "--round", 1, 2, "--output", tmp_path / "tokens.jsonl")
    result = json.loads((run_dir / "inspect.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "tokens.jsonl").read_text().splitlines()]
    assert (result["num_responses"], result["num_right"], len(lines)) == (16, 4, 16)
    assert result["rollouts"] == [str(run_dir / "rollouts" / f"round_00000{round}.jsonl.gz") for round in (1, 2)]
    names = ["return", "return_per_token", "discounted_0.9", "discounted_0.99", "log_prob", "log_prob_per_token"]
    assert list(result["scores"]) == names
    by_prompt = {}
    for line in lines:
        by_prompt.setdefault(line["prompt"], []).append(line)
    mixed = [group for group in by_prompt.values() if len({line["verdict"] for line in group}) > 1]
    assert result["num_mixed_prompts"] == len(mixed) >= 2
    assert result["num_mixed_responses"] == sum(map(len, mixed))
    assert result["num_prompts"] == len(by_prompt)
    for name in names:
        aucs = []
        for group in mixed:
            pairs = [
                (right["scores"][name], wrong["scores"][name])
                for right in group
                for wrong in group
                if right["verdict"] == "ok" and wrong["verdict"] != "ok"
            ]
            aucs.append(np.mean([(right > wrong) + 0.5 * (right == wrong) for right, wrong in pairs]))
        estimate = result["scores"][name]["auc"]
        assert estimate["value"] == pytest.approx(np.mean(aucs))
        assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
        assert f"\n{name} " in text
        assert f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]" in text
    assert [each["verdict"] for each in result["examples"]] == ["ok", "wrong"]


def test_without_ids_and_with_another_tokenizers_the_text_is_tokenized_again(files, run_dir, capsys, tmp_path):
    rows = [json.loads(line) for line in tiny_runs.rollouts(run_dir)["round_000001.jsonl"].splitlines()]
    tokenizer = weights.load(str(files / "model")).tokenizer
    # What an untrained model samples is not how its tokenizer would split the text.
    again = [tokenizer(row["response"], add_special_tokens=False).input_ids for row in rows]
    changed = sum(row["num_tokens"] != len(ids) for row, ids in zip(rows, again, strict=True))
    assert changed
    damages = {
        "none": lambda row: row.pop("tokens"),
        "other ids": lambda row: row.update(tokens=[(each + 1) % 90 for each in row["tokens"]]),
        "beyond the vocabulary": lambda row: row.update(tokens=[*row["tokens"], 10**9]),
        "no ids": lambda row: row.update(tokens=[-1, "x"]),
    }
    for name, damage in damages.items():
        damaged = [dict(row) for row in rows]
        for row in damaged:
            damage(row)
        file = tmp_path / "damaged.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in damaged))
        words = ("--run-dir", run_dir, "--rollouts", file, "--output", tmp_path / "tokens.jsonl")
        text, _ = inspected(capsys, *words)
        lines = [json.loads(line) for line in (tmp_path / "tokens.jsonl").read_text().splitlines()]
        assert [line["token_ids"] for line in lines] == again, name
        assert f"note: {changed} of 8 responses have become another number" in text


def test_the_report_gets_the_log_ratio_of_the_last_checkpoint_to_the_initial_model(run_dir, capsys, tmp_path):
    text, _ = inspected(capsys, "--run-dir", run_dir)
    assert "for the report: 16 responses of 2 rounds" in text
    stored = token_file.read(run_dir / "token_scores.jsonl.gz")
    assert stored.about["policy"].endswith("round 2")
    scored = {}
    for round in (0, 2):
        words = ("--run-dir", run_dir, "--checkpoint_round", round, "--round", 1, 2, "--json", "/dev/null")
        inspected(capsys, *words, "--output", tmp_path / "tokens.jsonl")
        scored[round] = [json.loads(line) for line in (tmp_path / "tokens.jsonl").read_text().splitlines()]
    assert list(stored.rows) == [(round, line) for round in (1, 2) for line in range(8)]
    for row, before, after in zip(stored.rows.values(), scored[0], scored[2], strict=True):
        assert row["tokens"] == before["tokens"]
        assert row["digest"] == token_file.digest(before["prompt"], before["response"])
        ratio = np.subtract(after["log_prob"], before["log_prob"])
        np.testing.assert_allclose(row["log_ratio"], ratio, atol=6e-4)
        np.testing.assert_allclose(row["endogenous_reward"], after["endogenous_reward"], atol=6e-4)
        np.testing.assert_allclose(row["reference_endogenous_reward"], before["endogenous_reward"], atol=6e-4)
    assert max(abs(value) for row in stored.rows.values() for value in row["log_ratio"]) > 0.01
    assert cli.main(["report", "--run-dir", str(run_dir), "--output", str(tmp_path / "r.html")]) == 0
    assert "16 of them have coloured tokens" in (tmp_path / "r.html").read_text()


def test_the_scores_for_the_report_are_bounded_and_left_out_where_they_would_not_be_the_runs(files, run_dir, capsys):
    text, _ = inspected(capsys, "--run-dir", run_dir, "--report_tokens", 20)
    assert "for the report: 2 responses of 2 rounds" in text
    file = run_dir / "token_scores.jsonl.gz"
    assert {round for round, _ in token_file.read(file).rows} == {1, 2}
    file.unlink()
    for words in (
        ("--json", "/dev/null"),
        ("--report_tokens", 0),
        ("--rollouts", run_dir / "rollouts" / "round_000001.jsonl.gz"),
    ):
        inspected(capsys, "--run-dir", run_dir, *([] if words[0] == "--rollouts" else ["--round", 1]), *words)
        assert not file.exists()


def test_scoring_a_few_responses_at_a_time_gives_the_same_scores(run_dir, capsys, tmp_path, monkeypatch):
    lines = []
    for chunk in (64, 3):
        monkeypatch.setattr(inspection, "CHUNK", chunk)
        inspected(capsys, "--run-dir", run_dir, "--round", 1, "--output", tmp_path / "tokens.jsonl")
        lines.append([json.loads(line) for line in (tmp_path / "tokens.jsonl").read_text().splitlines()])
    for one, other in zip(*lines, strict=True):
        assert one["token_ids"] == other["token_ids"]
        for name in ("log_prob", "soft_value", "endogenous_reward"):
            np.testing.assert_allclose(one[name], other[name], atol=2e-5)


def test_a_checkpoint_and_another_model_score_otherwise_and_json_goes_where_it_is_sent(files, run_dir, capsys):
    returns = {}
    rollouts = ("--rollouts", run_dir / "rollouts" / "round_000001.jsonl.gz")
    for name, policy in {
        "initial": ("--run-dir", run_dir),
        "round 0": ("--run-dir", run_dir, "--checkpoint_round", 0),
        "round 2": ("--run-dir", run_dir, "--checkpoint_round", 2),
        "alone": ("--config", files / "config.yaml", "--model.path", files / "model"),
    }.items():
        text, error = inspected(capsys, *policy, *rollouts, "--json", "/dev/stdout")
        result = json.loads(text)
        returns[name] = [each["scores"]["return"] for each in result["examples"]]
        assert result["model"] in error
    assert not (run_dir / "inspect.json").exists()
    assert returns["initial"] == returns["round 0"] == returns["alone"]
    assert returns["initial"] != returns["round 2"]


def test_without_right_and_wrong_responses_there_is_no_auc_but_the_tokens_may_be_asked_for(run_dir, capsys, tmp_path):
    _, error = inspected(capsys, "--run-dir", run_dir, "--report_tokens", 0, code=2)
    assert "no prompt has both right and wrong responses (0 of 8 responses to " in error
    assert "add --output" in error
    assert not (run_dir / "inspect.json").exists()
    text, _ = inspected(capsys, "--run-dir", run_dir, "--output", tmp_path / "tokens.jsonl")
    assert "note: no prompt has both" in text
    assert json.loads((run_dir / "inspect.json").read_text())["scores"] == {}
    assert len((tmp_path / "tokens.jsonl").read_text().splitlines()) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to inspect. Name a run with --run-dir RUN, or files with --rollouts"),
        (("--run-dir", "{run}", "--round", "7"), "has no rollouts of that round, only of 1, 2"),
        (("--run-dir", "{run}", "--round", "1", "--rollouts", "{bad}"), "Use one of them"),
        (("--run-dir", "{run}", "--round", "1", "--round", "2"), "--round appears 2 times"),
        (("--run-dir", "{run}", "--report_tokens", "-1"), "--report_tokens -1 is below 0"),
        (("--run-dir", "{run}", "--round", "1", "--checkpoint_round", "9"), "no checkpoint of round 9 exists"),
        (("--rollouts", "{bad}", "--checkpoint_round", "1"), "--checkpoint_round 1 names a checkpoint, but no run"),
        (("--rollouts", "{bad}"), "bad.jsonl:2: 'verdict' is 'good', not one of ok, wrong"),
        (("--rollouts", "{empty}"), "the rollouts files have no line"),
        (("--rollouts", "absent.jsonl"), "absent.jsonl does not exist"),
        (("--rollouts", "{right}"), "model.path is empty"),
        (
            ("--run-dir", "{run}", "--round", "1", "--output", "absent/file.jsonl"),
            "--output absent/file.jsonl cannot be",
        ),
        (("--run-dir", "{run}", "--round", "1", "--json", "absent/file.json"), "--json absent/file.json cannot be"),
    ],
)
def test_what_cannot_be_inspected_is_refused_with_one_message(run_dir, capsys, tmp_path, options, message):
    line = '{"prompt": "1+1=", "response": "2", "verdict": "%s"}\n'
    texts = {"bad": line % "ok" + line % "good", "empty": "", "right": line % "ok" + line % "wrong"}
    for name, text in texts.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    places = {"run": run_dir} | {name: tmp_path / f"{name}.jsonl" for name in texts}
    out, error = inspected(capsys, *(option.format(**places) for option in options), code=2)
    assert message in error
    assert (out, error.count("reval: ")) == ("", 1)
    assert not (run_dir / "inspect.json").exists()
