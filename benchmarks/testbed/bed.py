"""The models of the test bed and their tasks: taught in minutes, and committed in `beds/`, since rounding differs by machine.

    python -m benchmarks.testbed.bed short long --output runs/beds    # teaches them here, to look at
    python -m benchmarks.testbed.bed short --output benchmarks/testbed/beds    # in place of the committed one

A model that is taught elsewhere begins at other success rates, with other prompts; the runs of a figure are of one model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.testbed import questions, supervised
from benchmarks.testbed.supervised import Example
from reval_jax import model, weights

BEDS = Path("benchmarks/testbed/beds")
SEED = 0
BATCH = 128


class Level(NamedTuple):
    """Prompts that begin at one success rate."""

    letter: str
    rate: float  # within TOLERANCE


LEVELS = {"hard": Level("a", 0.10), "medium": Level("b", 0.40), "easy": Level("c", 0.68)}
MANY = "d"  # the letter of the task `many`

TOLERANCE = 0.02
PROMPTS = 3  # of each level
TRAINED, HELD_OUT = 128, 64  # questions of the task `many`

SUMS = 8  # questions of the task `long_8`


class Bed(NamedTuple):
    """A model and its data, on disk."""

    directory: Path

    @property
    def model(self) -> Path:
        """A Hugging Face directory."""
        return self.directory / "model"

    def data(self, task: str) -> Path:
        """The questions that a task is trained on."""
        return self.directory / f"{task}.jsonl"

    def held_out(self, task: str) -> Path:
        """Questions of the same kind that it is not trained on."""
        return self.directory / f"{task}_held_out.jsonl"

    def about(self) -> dict[str, Any]:
        """What was made: sizes, success rates of the prompts before training."""
        return json.loads((self.directory / "about.json").read_text(encoding="utf-8"))


def start(kind: str, task: str) -> float:
    """The success rate at which a task begins: the mean probability of its right answers."""
    (rate,) = bed(kind).about()["success_rates"][task.split("_groups")[0]].values()
    return rate


class _Plan(NamedTuple):
    """What one model is taught."""

    architecture: model.Architecture
    draw: Callable[[np.random.Generator, int, float], Sequence[Example]]
    steps: int
    batch: int
    length: int  # tokens of the longest example


def bed(kind: str) -> Bed:
    """The committed bed of this kind: `short` (questions of one operation) or `long` (sums in steps)."""
    return Bed(BEDS / kind)


def teach(kind: str, directory: Path, *, log: Callable[[str], None] = print) -> Bed:
    """Teaches a model of this kind, and chooses its tasks.

    Args:
      directory: replaced.

    Raises:
      SystemExit: the model has too few prompts that begin at the rate of a level.
    """
    plan, made = PLANS[kind], Bed(directory)
    num_params = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(model.abstract_params(plan.architecture)))
    log(f"teaching the test bed's model for {kind} answers, {num_params / 1e6:.2f} million parameters, in {directory}")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    params = supervised.teach(
        plan.architecture, plan.draw, steps=plan.steps, batch=plan.batch, length=plan.length, seed=SEED, log=log
    )
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), params)  # as it is written
    tokenizer = supervised.tokenizer()
    weights.export(
        made.model, plan.architecture, params, tokenizer, eos_token_ids=(tokenizer.eos_token_id,), dtype="bfloat16"
    )
    about = {
        "parameters": num_params,
        "steps": plan.steps,
        "plan": plan_hash(plan),
        "weights": hashlib.sha256((made.model / "model.safetensors").read_bytes()).hexdigest(),
        **_WRITE[kind](made, plan, params),
    }
    (directory / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return made


def _write_short(made: Bed, plan: _Plan, params: model.Params) -> dict[str, Any]:
    """Chooses the prompts of each level, and the questions of `many`; their success rates before training."""
    generator = np.random.default_rng(SEED)
    found: dict[str, dict[str, float]] = {}
    for level, (letter, rate) in LEVELS.items():
        known = questions.known(letter)
        rates = supervised.probabilities(plan.architecture, params, known)
        near = np.flatnonzero(np.abs(rates - rate) <= TOLERANCE)
        names = [f"{level}_{number}" for number in range(1, PROMPTS + 1)] + ["tuning"] * (level == "medium")
        if near.size < len(names):
            raise SystemExit(f"the taught model has {near.size} of {len(names)} prompts for the level {level}")
        for name, index in zip(names, generator.permutation(near), strict=False):
            _write(made.data(name), [known[index]])
            found[name] = {known[index].question: round(float(rates[index]), 4)}
    many = [questions.known(MANY)[index] for index in generator.permutation(len(questions.known(MANY)))]
    for path, part in (
        (made.data("many"), many[:TRAINED]),
        (made.held_out("many"), many[TRAINED : TRAINED + HELD_OUT]),
    ):
        _write(path, part)
        found[path.stem] = {"mean": round(float(supervised.probabilities(plan.architecture, params, part).mean()), 4)}
    return {"success_rates": found}


def _write_long(made: Bed, plan: _Plan, params: model.Params) -> dict[str, Any]:
    """Writes sums in steps, whose answer is the last number; the mean probability of responses without any error."""
    examples = questions.steps(np.random.default_rng(SEED + 1), SUMS)
    rates = supervised.probabilities(plan.architecture, params, examples)
    _write(made.data("long_8"), [Example(each.question, each.answer.rstrip(".").split(";")[-1]) for each in examples])
    return {"success_rates": {"long_8": {"mean": round(float(rates.mean()), 4)}}}


def _write(path: Path, examples: Sequence[Example]) -> None:
    lines = [json.dumps({"question": each.question, "answer": each.answer}) + "\n" for each in examples]
    path.write_text("".join(lines), encoding="utf-8")


def _architecture(max_positions: int) -> model.Architecture:
    return model.Architecture(
        vocab_size=len(supervised.tokenizer()),
        width=96,
        num_layers=3,
        num_heads=3,
        num_kv_heads=1,
        head_size=32,
        mlp_width=256,
        rope_theta=10000.0,
        rope_scaling=None,
        norm_eps=1e-6,
        qkv_bias=False,
        qk_norm=False,
        tied_head=True,
        max_positions=max_positions,
        family="llama",
    )


def plan_hash(plan: _Plan) -> str:
    """Of the plan, and of examples that it draws; a change of how they are learned needs another `supervised.VERSION`."""
    generator = np.random.default_rng(SEED)
    drawn = [plan.draw(generator, 1000, progress) for progress in (0.0, 0.99)]
    about = (plan._replace(draw=None), drawn, supervised.VERSION)  # type: ignore[arg-type]
    return hashlib.sha256(repr(about).encode()).hexdigest()[:12]


PLANS: Mapping[str, _Plan] = {
    "short": _Plan(_architecture(32), questions.taught, steps=1500, batch=BATCH, length=10),
    "long": _Plan(_architecture(64), questions.steps_taught, steps=1500, batch=48, length=32),
}

_WRITE: Mapping[str, Callable[[Bed, _Plan, model.Params], dict[str, Any]]] = {
    "short": _write_short,
    "long": _write_long,
}


def main() -> None:
    """Teaches beds, and prints where their tasks begin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=sorted(PLANS))
    parser.add_argument(
        "--output", type=Path, required=True, help="directory in which each gets a directory of its name"
    )
    args = parser.parse_args()
    for kind in args.kinds:
        print(json.dumps(teach(kind, args.output / kind).about(), indent=1))


if __name__ == "__main__":
    main()
