"""`reval bench`: times the compiled score head, update or sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reval_jax import exit_codes, types
from reval_jax.cli import arguments, output, parsing


def bench(argv: list[str]) -> int:
    """Runs the benchmark that the first argument names."""
    name = parsing.subcommand(argv, "bench", str(arguments.Bench.__doc__), ARGUMENTS)
    if name is None:
        return exit_codes.DONE if argv else exit_codes.WRONG_INPUT
    args = parsing.parse(ARGUMENTS[name], f"bench {name}", argv[1:])
    sizes = [value for field, value in vars(args).items() if field not in NOT_SIZES]
    if any(number <= 0 for value in sizes for number in (value if isinstance(value, tuple) else (value,))):
        raise ValueError(f"reval bench {name}: a size is 0 or less. Use positive numbers.")
    measure: dict[str, Callable[[Any], types.Json]] = {
        "scores": _bench_scores,
        "update": _bench_update,
        "sampler": _bench_sampler,
    }
    output.write_json(args.json, measure[name](args))
    return exit_codes.DONE


def _bench_scores(args: arguments.BenchScores) -> types.Json:
    if len(args.vocabulary) != len(args.width):
        raise ValueError(
            f"--vocabulary has {len(args.vocabulary)} sizes and --width {len(args.width)}, but they form pairs. "
            "Give one width for each vocabulary."
        )

    from reval_jax import distributed
    from reval_jax.tools import bench

    distributed.start()
    return bench.time_scores.run(
        tokens=args.tokens,
        shapes=list(zip(args.vocabulary, args.width, strict=True)),
        dtypes=args.dtype,
        repeats=args.repeats,
        most_bytes=int(args.memory * 2**30),
        on_case=lambda case: output.show(args.json, bench.time_scores.summary(case)),
    )


def _bench_update(args: arguments.BenchUpdate) -> types.Json:
    if args.prompt_tokens >= args.tokens:
        raise ValueError(
            f"--prompt_tokens {args.prompt_tokens} leaves no room for a response in --tokens {args.tokens}. Use fewer."
        )

    from reval_jax import distributed, weights
    from reval_jax.tools import bench

    distributed.start()
    architecture, source = weights.find_architecture(args.model)
    output.show(args.json, f"architecture of {source}")
    return bench.time_update.run(
        architecture,
        bench.time_update.Workload(args.rows, args.tokens, args.prompt_tokens),
        dtypes=args.dtype,
        remats=args.remat,
        micro_batch_tokens=args.micro_batch_tokens,
        repeats=args.repeats,
        on_case=lambda case: output.show(args.json, bench.time_update.summary(case)),
    )


def _bench_sampler(args: arguments.BenchSampler) -> types.Json:
    from reval_jax import distributed, weights
    from reval_jax.tools import bench

    distributed.start()
    architecture, source = weights.find_architecture(args.model)
    output.show(args.json, f"architecture of {source}")
    return bench.time_sampler.run(
        architecture,
        bench.time_sampler.Workload(args.prompts, args.samples, args.prompt_tokens, args.response_tokens),
        dtypes=args.dtype,
        slots=args.slots,
        lengths=args.lengths,
        window=args.window,
        caches=args.kv_cache,
        attentions=args.attention,
        repeats=args.repeats,
        on_case=lambda case: output.show(args.json, bench.time_sampler.summary(case)),
    )


ARGUMENTS: dict[str, Any] = {
    "scores": arguments.BenchScores,
    "update": arguments.BenchUpdate,
    "sampler": arguments.BenchSampler,
}
NOT_SIZES = ("dtype", "remat", "lengths", "kv_cache", "attention", "json", "model")
