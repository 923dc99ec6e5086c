"""A user-defined sampler engine needs no change of the package: `rollout.engine` names its function."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support import tiny_runs

from reval_jax import cli, config, sampler, types

ENGINE = '''
"""An engine that answers from a list, without a model."""

import numpy as np

from reval_jax import sampler, types


def make(architecture, meshes, config, max_prompt_tokens):
    synced = []

    def sync_weights(params):
        synced.append(params)
        return len(synced)

    def generate(params, prompts, key, *, samples_per_prompt, sampling, max_tokens=None, finished=None, hooks=None):
        assert params == len(synced)
        stop = sampling.stop_ids[0]
        responses = [
            types.Response(
                prompt=prompt,
                sample=sample,
                tokens=np.array([5 + sample, stop], np.int32),
                log_prob=np.array([-1.0, -0.5], np.float32),
                truncated_log_prob=np.array([-1.0, -0.5], np.float32),
                is_truncated=False,
            )
            for prompt in range(len(prompts.tokens))
            for sample in range(samples_per_prompt)
        ]
        hooks.on_finished(responses)
        return responses

    return sampler.Sampler(sync_weights, generate)
'''


@pytest.fixture
def engine(tmp_path, monkeypatch):
    (tmp_path / "listed_answers.py").write_text(ENGINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "listed_answers:make"


@pytest.mark.slow
def test_a_user_defined_engine_trains_a_run(tmp_path, engine):
    file = tiny_runs.write_files(tmp_path)
    outcome = tiny_runs.play(file, tmp_path / "run", rollout__engine=engine, eval__every=0, run__rounds=2)
    assert [line["response_length/mean"] for line in outcome.lines] == [2, 2]
    assert all(line["actor/entropy"] == 0.75 for line in outcome.lines), "of the log-probabilities that it returned"
    rows = [json.loads(line) for line in tiny_runs.rollouts(tmp_path / "run")["round_000002.jsonl"].splitlines()]
    assert len(rows) == 8
    assert {row["num_tokens"] for row in rows} == {2}


def test_an_engine_that_does_not_exist_is_refused_before_anything_is_written(tmp_path, capsys):
    file = tiny_runs.write_files(tmp_path)
    for name, message in (
        ("jaxx", "no engine has this name. Did you mean 'jax'"),
        ("no_such:make", "cannot be loaded"),
    ):
        argv = ["train", "--config", str(file), "--run-dir", str(tmp_path / "run"), "--rollout.engine", name]
        assert cli.main(argv) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_config_lists_the_engines_that_there_are():
    from reval_jax.sampler import engines

    assert tuple(engines.ENGINES) == config.ENGINES


def test_responses_without_the_mean_log_probabilities_that_an_algorithm_reads_are_refused():
    numbers = np.array([-3.0, -2.5], np.float32)
    response = types.Response(0, 0, np.array([5, 2], np.int32), numbers, numbers, False, numbers)
    names = {"objective": "rover", "engine": "my_engine:listed"}
    both = [response, response._replace(mean_log_prob=numbers - 1)]
    np.testing.assert_array_equal(sampler.joined_mean_log_prob(both, **names), [-3, -2.5, -4, -3.5])
    for mean, found in ((None, "no mean_log_prob"), (numbers[:1], r"mean_log_prob of shape \[1\]")):
        message = (
            f"update.objective=rover reads .* rollout.engine=my_engine:listed returned .* 2 tokens with {found}. Fill"
        )
        with pytest.raises(ValueError, match=message):
            sampler.joined_mean_log_prob([response, response._replace(mean_log_prob=mean)], **names)
