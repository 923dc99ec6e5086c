"""The benchmarks run the described work and write it as JSON; no time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from support import hf_checkpoints

from benchmarks import log_probabilities, small_steps
from reval_jax import cli, model, timing, weights, work
from reval_jax.tools import bench

SMALL = bench.time_update.Workload(rows=2, tokens=64, prompt_tokens=8)


def test_the_two_score_heads_that_are_compared_agree():
    arrays = bench.time_scores._operands(
        *(np.empty(shape, dtype) for shape, dtype in (((5, 8), np.float32), ((8, 40), np.float32), ((5,), np.int32)))
    )
    for one, other in zip(
        bench.time_scores.scores.token_scores(*arrays), bench.time_scores.full_logits(*arrays), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_full_logits_that_would_not_fit_are_not_run():
    case = bench.time_scores.measure(64, 128, 16, "float32", repeats=1, most_bytes=0)
    assert case["full_logits_temporary_bytes"] >= 64 * 128 * 4
    assert "time_ratio" not in case
    assert "would not fit" in bench.time_scores.summary(case)


def test_scores_on_the_command_line_write_json(capsys):
    sizes = ["--tokens", "32", "--vocabulary", "64", "--width", "16", "--dtype", "float32", "--repeats", "1"]
    assert cli.main(["bench", "scores", *sizes, "--json", "/dev/stdout"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["machine"]["versions"]["jax"]
    (case,) = results["cases"]
    assert case["fused_s"] > 0
    assert case["time_ratio"] == pytest.approx(case["fused_s"] / case["full_logits_s"])


def test_log_normal_lengths_have_the_mean_they_say_and_stay_in_bounds():
    shape = bench.time_update.Workload(rows=256, tokens=2048, prompt_tokens=64)
    lengths = bench.time_update.lognormal_lengths(shape)
    assert lengths.size == 1024
    assert lengths.max() == 2048
    assert lengths.min() > 64
    assert lengths.mean() == pytest.approx(2048 / 4, rel=0.1)


@pytest.mark.slow
def test_an_update_benchmark_reports_its_measurements():
    with jax.numpy_dtype_promotion("standard"):
        results = bench.time_update.run(
            hf_checkpoints.tiny_architecture(),
            SMALL,
            dtypes=("float32",),
            remats=("full",),
            micro_batch_tokens=64,
            repeats=1,
            on_case=lambda case: None,
        )
    (case,) = results["cases"]
    assert case["remat"] == "full"
    assert case["tokens_per_s"]["fixed"] == pytest.approx(128 / case["seconds"]["fixed"])
    flops = work.weights(hf_checkpoints.tiny_architecture(), tokens=128, scored=128 - 2 * SMALL.prompt_tokens)
    rate = case["matmul_peak_flops"] * results["machine"]["num_devices"]
    assert case["peak"] == {"flops": case["matmul_peak_flops"], "source": "measured"}
    assert case["mfu"]["fixed"] == pytest.approx(flops / case["seconds"]["fixed"] / rate)
    assert 0 < case["mfu"]["fixed"] + case["attention_share"]["fixed"] + case["recomputed_share"]["fixed"] <= 1
    assert case["refused"] is None
    assert "log-normal" in bench.time_update.summary(case)


def test_an_update_faster_than_its_peak_has_no_mfu_and_says_why():
    devices = jax.device_count()
    works = {kind: work.UpdateWork(60.0 * devices, 30.0 * devices, 20.0 * devices) for kind in ("fixed", "lognormal")}
    use = bench.time_update.use(works, {"fixed": 1.0, "lognormal": 0.5}, timing.Peak(200.0, "measured"), 200.0)
    assert use["mfu"] == {"fixed": None, "lognormal": None}
    assert "busy" in use["refused"]
    use = bench.time_update.use(works, {"fixed": 1.0, "lognormal": 2.0}, timing.Peak(200.0, "measured"), 200.0)
    assert use["mfu"] == pytest.approx({"fixed": 0.3, "lognormal": 0.15})
    assert use["refused"] is None


def test_candidates_are_timed_interleaved():
    order = []
    candidates = {name: (lambda name=name: order.append(name) or np.zeros(1)) for name in "ab"}
    seconds = timing.interleaved(candidates, repeats=2)
    assert "".join(order) == "abababab"[:6]
    assert [len(values) for values in seconds.values()] == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["speed"], "scores, update"),
        (["scores", "--tokens", "0"], "0 or less"),
        (["scores", "--vocabulary", "64"], "one width for each"),
        (["update", "--prompt_tokens", "128"], "no room for a response"),
        (["update", "--model", "no/such/model"], "no/such/model"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(arguments, says):
    done = subprocess.run(
        [sys.executable, "-m", "reval_jax", "bench", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("lengths", ["fixed", "lognormal"])
def test_a_sampler_benchmark_reports_its_measurements(lengths):
    shape = bench.time_sampler.Workload(prompts=2, samples=4, prompt_tokens=8, response_tokens=8)
    results = bench.time_sampler.run(
        hf_checkpoints.tiny_architecture(),
        shape,
        dtypes=("float32",),
        slots=(16,),
        lengths=(lengths,),
        window=4,
        caches=("compute", "int8"),
        attentions=("auto", "per_row", "whole"),
        repeats=1,
        on_case=lambda case: print(bench.time_sampler.summary(case)),
    )
    assert json.loads(json.dumps(results))["machine"]
    kinds = [(cache, attention) for cache in ("compute", "int8") for attention in ("batched", "per_row", "whole")]
    for case, kind in zip(results["cases"], kinds, strict=True):
        assert (case["lengths"], case["slots"], (case["kv_cache"], case["attention"])) == (lengths, 16, kind)
        assert case["tokens"] == bench.time_sampler.response_lengths(shape, lengths).sum()
        assert case["tokens_per_s"] == pytest.approx(case["tokens"] / case["seconds"]["run"])
        assert 0 < case["slot_use"] <= 1
        assert case["compiled_programs"] == 4  # the slots, a prefill, its admission, the window


def test_the_kernel_for_gpus_is_refused_elsewhere():
    with pytest.raises(ValueError, match="--attention triton is a kernel for GPUs"):
        bench.time_sampler._with_attention(model.kernels.PLAIN, "triton")


def test_each_attention_gets_a_cache_that_it_can_read():
    on_gpu = model.kernels.gpu_sampler(model.attention.xla.attend, fuses_heads=True)
    for kernels, attention, storage in (
        (on_gpu, "triton", model.cache.ROWS),
        (on_gpu, "batched", model.cache.PLAIN),
        (model.kernels.PLAIN, "whole", model.cache.ROWS),
        (model.kernels.PLAIN._replace(storage=model.cpu.UINT16), "per_row", model.cpu.UINT16),
    ):
        chosen = bench.time_sampler._with_attention(kernels, attention)
        assert chosen.storage is storage
        assert bench.time_sampler._attention_name(chosen) == attention


def test_responses_of_log_normal_lengths_have_a_quarter_of_the_limit_on_average():
    shape = bench.time_sampler.Workload(prompts=64, samples=8, prompt_tokens=8, response_tokens=64)
    lengths = bench.time_sampler.response_lengths(shape, "lognormal")
    assert lengths.shape == (128, 8)
    assert 1 <= lengths.min() < 20
    assert lengths.max() == 256
    assert lengths.mean() == pytest.approx(64, rel=0.1)


@pytest.mark.slow
def test_log_probabilities_of_sampler_and_learner_are_compared_token_by_token(tmp_path, monkeypatch):
    monkeypatch.setattr(log_probabilities, "TOKENS", 4)
    loaded = weights.load(hf_checkpoints.tiny_checkpoint(tmp_path))
    gaps = log_probabilities.measure(loaded, "float32", "compute")
    assert len(gaps["response"]) <= len(gaps["token"])
    assert gaps["token"].max() < 1e-4
    assert log_probabilities.measure(loaded, "float32", "int8")["token"].max() > gaps["token"].max()


def test_small_steps_are_seen_whole_only_from_weights_anywhere_between_bfloat16_numbers():
    stored = np.float32(np.random.default_rng(0).integers(-8, 8, 40_000) + 8.5) / 2**9  # of at most 5 significant bits
    starts = small_steps.starts(stored)
    np.testing.assert_array_equal(starts["stored in bfloat16"], stored)
    # 1e-6 is at most a hundredth of the distance between two bfloat16 numbers of this size.
    assert small_steps.seen(stored, 1e-6, 1) == 0
    assert small_steps.seen(starts["float32, anywhere between"], 1e-6, 1) == pytest.approx(1, abs=0.5)
    assert small_steps.seen(starts["float32, anywhere between"], 1e-6, 512) == pytest.approx(1, abs=0.1)
    # Exactly between 1 and 1 + 2**-7 half of the directions go on to the latter: a mean movement of 2**-8.
    between = np.full(40_000, 1 + 2**-8, np.float32)
    assert (small_steps.ties(stored), small_steps.ties(between)) == (0, 1)
    assert small_steps.seen(between, 1e-6, 1) == pytest.approx(2**-8 / 1e-6, rel=0.05)
    np.testing.assert_array_equal(
        small_steps.rounded(np.float32([1, 1 + 2**-8, 1 + 3 * 2**-8])), np.float32([1, 1, 1 + 2**-6])
    )
