"""A whole run with everything that GPUs get, on CPU: it trains as on CPU and resumes bit for bit.

The decode kernel is interpreted, attention over whole rows is plain XLA, and XLA's options for GPUs are left out.
"""

from __future__ import annotations

import pytest
from support import tiny_programs, tiny_runs, tiny_sampler

from reval_jax import model
from reval_jax.model import lookup
from reval_jax.model.attention import decode_triton


@pytest.fixture
def as_on_gpu(monkeypatch):
    """What differs on GPUs, but for what only a GPU can run."""
    monkeypatch.setattr(model.kernels, "platform_of", lambda mesh: "gpu")
    monkeypatch.setattr(model.kernels, "compiler_options", lambda *arguments, **options: None)
    monkeypatch.setattr(decode_triton, "attend", tiny_sampler.INTERPRETED)


@pytest.mark.slow
def test_a_run_with_the_gpus_kernels_trains_as_on_cpu_and_resumes_bit_for_bit(tmp_path, as_on_gpu, monkeypatch):
    file = tiny_runs.write_files(tmp_path)
    plain = {"model__attention": "xla", "checkpoint__every": 1}
    tiny_runs.play(file, tmp_path / "straight", **plain)
    for rounds in (1, 2, 4):
        tiny_runs.play(file, tmp_path / "resumed", run__rounds=rounds, **plain)
    tiny_runs.assert_same_run(tmp_path / "resumed", tmp_path / "straight")
    monkeypatch.undo()
    tiny_runs.play(file, tmp_path / "cpu", **plain)
    on_gpu, on_cpu = tiny_runs.metrics_lines(tmp_path / "straight"), tiny_runs.metrics_lines(tmp_path / "cpu")
    assert len(on_gpu) == len(on_cpu)
    for one, other in zip(on_gpu, on_cpu, strict=True):
        assert set(one) == set(other)
        for name in ("actor/loss", "actor/grad_norm"):
            if name in one:
                assert one[name] == pytest.approx(other[name], rel=1e-3), name


def test_the_learner_and_the_sampler_of_a_gpu_are_chosen(as_on_gpu):
    """So that the test above tests them."""
    tiny = tiny_programs.tiny()
    learner = model.kernels.for_learner("xla", tiny.mesh, tiny.architecture, "float32")
    assert learner.lookup is lookup.REPEATABLE
    assert learner.cond is model.kernels.select
    engine = tiny_sampler.engine_of(tiny)
    assert engine.kernels.attend_cached is tiny_sampler.INTERPRETED
