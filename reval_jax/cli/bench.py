"""`reval bench`: its kinds, and what each measures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reval_jax.cli import arguments, output, parsing


def bench(argv: list[str]) -> int:
    """Measures what its first argument names."""
    what = parsing.choose(argv, "bench", str(arguments.Bench.__doc__), BENCHES)
    if what is None:
        return 0 if argv else 2
    given = parsing.parse(BENCHES[what], f"bench {what}", argv[1:])
    sizes = [value for name, value in vars(given).items() if name not in NOT_SIZES]
    if any(number <= 0 for value in sizes for number in (value if isinstance(value, tuple) else (value,))):
        raise ValueError(f"reval bench {what} was given a size of 0 or less. Use positive numbers.")
    measure: dict[str, Callable[[Any], dict[str, Any]]] = {
        "scores": _bench_scores,
        "update": _bench_update,
        "sampler": _bench_sampler,
    }
    output.write_json(given.json, measure[what](given))
    return 0


def _bench_scores(given: arguments.BenchScores) -> dict[str, Any]:
    if len(given.vocabulary) != len(given.width):
        raise ValueError(
            f"--vocabulary has {len(given.vocabulary)} sizes and --width {len(given.width)}, but they are taken in pairs. "
            "Give one width for each vocabulary."
        )

    from reval_jax import distributed
    from reval_jax.tools import bench

    distributed.start()
    return bench.scores.run(
        tokens=given.tokens,
        shapes=list(zip(given.vocabulary, given.width, strict=True)),
        dtypes=given.dtype,
        repeats=given.repeats,
        most_bytes=int(given.memory * 2**30),
        on_case=lambda case: output.say(given.json, bench.scores.sentence(case)),
    )


def _bench_update(given: arguments.BenchUpdate) -> dict[str, Any]:
    if given.prompt_tokens >= given.tokens:
        raise ValueError(
            f"--prompt_tokens {given.prompt_tokens} leaves no room for a response in --tokens {given.tokens}. Use fewer."
        )

    from reval_jax import distributed, weights
    from reval_jax.tools import bench

    distributed.start()
    architecture, source = weights.find_architecture(given.model)
    output.say(given.json, f"the shape of {source}")
    return bench.update.run(
        architecture,
        bench.update.Shape(given.rows, given.tokens, given.prompt_tokens),
        dtypes=given.dtype,
        remats=given.remat,
        micro_batch_tokens=given.micro_batch_tokens,
        repeats=given.repeats,
        on_case=lambda case: output.say(given.json, bench.update.sentence(case)),
    )


def _bench_sampler(given: arguments.BenchSampler) -> dict[str, Any]:
    from reval_jax import distributed, weights
    from reval_jax.tools import bench

    distributed.start()
    architecture, source = weights.find_architecture(given.model)
    output.say(given.json, f"the shape of {source}")
    return bench.sampler.run(
        architecture,
        bench.sampler.Shape(given.prompts, given.samples, given.prompt_tokens, given.response_tokens),
        dtypes=given.dtype,
        slots=given.slots,
        lengths=given.lengths,
        window=given.window,
        caches=given.kv_cache,
        attentions=given.attention,
        repeats=given.repeats,
        on_case=lambda case: output.say(given.json, bench.sampler.sentence(case)),
    )


BENCHES: dict[str, Any] = {
    "scores": arguments.BenchScores,
    "update": arguments.BenchUpdate,
    "sampler": arguments.BenchSampler,
}
NOT_SIZES = ("dtype", "remat", "lengths", "kv_cache", "attention", "json", "model")
