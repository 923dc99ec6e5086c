"""What workers find of a round's answers is kept with the responses, and decided once."""

from __future__ import annotations

import pytest
from support import tiny_runs

from reval_jax import config, journal, rollout, verifier
from reval_jax.sandbox import pool

REWARD = """
import os

def score(response, answer):
    if response == "spin":
        while True:
            pass
    if response == "raise":
        raise OSError
    return os.getpid() % 1000 / 1000  # another value in each process
"""


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "rewards.py").write_text(REWARD)
    own = config.Verifier(
        function="rewards:score", function_path=str(tmp_path), workers=1, cpu_limit=1, tasks_per_worker=1
    )
    return config.Config(verifier=own)


def graded(settings, store, texts):
    kept = store.verdicts()
    with verifier.Grader(settings, log=lambda text: None) as grader:
        found = grader.score(texts, ["1"] * len(texts), memory=verifier.Memory(kept.known, kept.keep))
    kept.close()
    return found


def test_a_verdict_is_the_first_ones_except_where_the_function_failed(settings, tmp_path, monkeypatch):
    store = journal.Journal(tmp_path / "journal", "a")
    texts = ["one", "two", "spin", "raise"]
    first = graded(settings, store, texts)
    assert first.kind.tolist()[2:] == [verifier_kind("limit"), verifier_kind("crash")]
    sent = []
    run = pool.Pool.run

    def noted(self, tasks, **options):
        sent.extend(task[0] for task in tasks)
        return run(self, tasks, **options)

    monkeypatch.setattr(pool.Pool, "run", noted)
    again = graded(settings, journal.Journal(tmp_path / "journal", "a"), [*texts, "three"])
    assert again.reward.tolist()[:2] == first.reward.tolist()[:2]
    assert again.kind.tolist()[:4] == first.kind.tolist()
    assert sent == ["raise", "three"]
    # Of another round or policy nothing is used.
    other = journal.Journal(tmp_path / "journal", "b")
    assert other.verdicts().known == {}


def verifier_kind(name):
    return journal.types.VERDICTS.index(name)


def test_every_flipped_bit_of_a_verdict_is_left_out_and_said(tmp_path):
    path, said = tmp_path / "verdicts.jsonl", []
    kept = journal.Verdicts(path, log=lambda kind, text: said.append(text))
    outcomes = {"a": ("done", 0.1 + 0.2, ""), "b": ("limit", None, "1 s of CPU time"), "c": ("done", "ok", "")}
    for key, outcome in outcomes.items():
        kept.keep(key, outcome)
    kept.close()
    assert journal.Verdicts(path, log=pytest.fail).known == outcomes
    whole = path.read_bytes()
    for index in range(1, len(whole) - 1):
        for bit in range(8):
            path.write_bytes(whole[:index] + bytes([whole[index] ^ 1 << bit]) + whole[index + 1 :])
            found = journal.Verdicts(path, log=lambda kind, text: said.append(text)).known
            assert found.items() < outcomes.items()
    assert "these answers are graded again" in said[0]
    path.write_bytes(whole[:-5])
    torn = journal.Verdicts(path, log=pytest.fail)
    assert torn.known.keys() == {"a", "b"}
    torn.keep("c", outcomes["c"])
    torn.close()
    assert journal.Verdicts(path, log=lambda kind, text: said.append(text)).known == outcomes


def test_outcomes_are_written_while_a_slow_batch_is_graded_and_a_full_disk_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "FLUSH_S", -1.0)
    said = []
    kept = journal.Verdicts(tmp_path / "deep" / "verdicts.jsonl", log=lambda kind, text: said.append(text))
    kept.keep("a", ("done", 1.0, ""))
    assert journal.Verdicts(tmp_path / "deep" / "verdicts.jsonl", log=pytest.fail).known == {"a": ("done", 1.0, "")}
    (tmp_path / "file").write_text("")
    kept = journal.Verdicts(tmp_path / "file" / "verdicts.jsonl", log=lambda kind, text: said.append(text))
    kept.keep("a", ("done", 1.0, ""))
    assert "cannot be written" in said[0]


def test_a_round_that_is_graded_again_after_a_kill_has_the_same_verdicts(tmp_path, monkeypatch):
    """The reward is the number of the worker's process, so that only a kept one can be had twice."""
    file = tiny_runs.write_files(tmp_path)
    (tmp_path / "rewards.py").write_text(REWARD)
    options = {"verifier__function": "rewards:score", "verifier__function_path": str(tmp_path), "run__rounds": 1}
    options |= {"verifier__tasks_per_worker": 1, "eval__every": 0}
    seen, grade = [], rollout._Round._grade

    def noted(self, *arguments, **settings):
        seen.append(grade(self, *arguments, **settings))
        if len(seen) == 1:
            raise KeyboardInterrupt
        return seen[-1]

    monkeypatch.setattr(rollout._Round, "_grade", noted)
    with pytest.raises(KeyboardInterrupt):
        tiny_runs.play(file, tmp_path / "run", **options)
    tiny_runs.play(file, tmp_path / "run", **options)
    assert seen[0].reward.tolist() == seen[1].reward.tolist()
    assert len(set(seen[0].reward.tolist())) > 1
