"""A tiny policy, for tests of the learner and the sampler."""

from __future__ import annotations

import functools
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reval_jax import algorithms, batch, mesh, model, replay, types
from reval_jax import config as config_lib
from support import hf_checkpoints


class Tiny(NamedTuple):
    config: config_lib.Config
    architecture: model.Architecture
    mesh: jax.sharding.Mesh
    params: Any  # on the mesh

    @property
    def algorithm(self) -> algorithms.Algorithm:
        return algorithms.choose(self.config)

    @property
    def limits(self) -> batch.Limits:
        return limits(self.config)


def limits(config: config_lib.Config) -> batch.Limits:
    """The bounds of a batch under these settings."""
    return algorithms.limits(config, algorithms.choose(config))


def settings(**sections: dict[str, Any]) -> config_lib.Config:
    """Settings small enough for a test; `sections` override fields."""
    tree: dict[str, Any] = {
        "model": {"path": "tiny", "compute_dtype": "float32"},
        "task": {"dataset": "tiny.jsonl", "template": "raw", "max_prompt_tokens": 16},
        "rollout": {"prompts_per_round": 2, "samples_per_prompt": 4, "max_response_tokens": 8, "decode_slots": 16},
        "replay": {"capacity": 32},
        "update": {"beta": 0.1, "batch_size": 8, "micro_batch_tokens": 4096},
        "optimizer": {"learning_rate": 1e-3},
    }
    for section, fields in sections.items():
        tree[section] = tree.get(section, {}) | fields
    return config_lib.from_tree(tree)


def tiny(
    *, data: int = 1, fsdp: int = 1, tensor: int = 1, family: str = "llama", architecture: Any = None, **sections: Any
) -> Tiny:
    """A tiny random policy on the first data·fsdp·tensor fake devices."""
    count = data * fsdp * tensor
    devices = jax.sharding.Mesh(np.array(jax.devices()[:count]).reshape(data, fsdp, tensor), mesh.AXES)
    return on_mesh(devices, family=family, architecture=architecture, **sections)


def on_mesh(devices: jax.sharding.Mesh, *, family: str = "llama", architecture: Any = None, **sections: Any) -> Tiny:
    """The same on any learner's mesh, also one over several processes."""
    config = settings(**sections)
    architecture = architecture or hf_checkpoints.tiny_architecture(family)
    placement = mesh.shardings(
        devices, model.logical_axes(architecture), model.abstract_params(architecture), mesh.LEARNER_AXES
    )
    return Tiny(config, architecture, devices, mesh.put(hf_checkpoints.tiny_params(architecture), placement))


def random_trajectories(num: int, *, seed: int = 0, max_prompt: int = 7, max_response: int = 8) -> types.Trajectories:
    """Trajectories of unequal lengths with random tokens, rewards, and scores of some reference."""
    rng = np.random.default_rng(seed)
    prompt_length = rng.integers(1, max_prompt + 1, num).astype(np.int32)
    response_length = rng.integers(1, max_response + 1, num).astype(np.int32)
    reward = rng.integers(0, 2, num).astype(np.float32)
    return replay.completed(
        {
            "tokens": rng.integers(4, hf_checkpoints.VOCABULARY, int((prompt_length + response_length).sum())).astype(
                np.int32
            ),
            "log_prob": -rng.uniform(0, 5, int(response_length.sum())).astype(np.float32),
            "prompt_length": prompt_length,
            "response_length": response_length,
            "is_truncated": rng.integers(0, 2, num).astype(bool),
            "raw_reward": reward,
            "reward": reward,
            "verdict": (1 - reward).astype(np.int8),
            "cursor": np.arange(num, dtype=np.int64),
            "sample": np.zeros(num, np.int32),
            "round": np.zeros(num, np.int32),
            "policy_version": np.zeros(num, np.int32),
            "use_count": np.zeros(num, np.int32),
            "reference_log_prob": -rng.uniform(5, 20, num).astype(np.float32),
            "reference_value": rng.uniform(3, 6, num).astype(np.float32),
            "reference_version": np.zeros(num, np.int32),
        }
    )


def graded(reward: np.ndarray, group: np.ndarray) -> types.Trajectories:
    """Trajectories with these rewards, f32[B], and groups, i[B]; the rest is random."""
    return random_trajectories(len(reward))._replace(
        raw_reward=np.asarray(reward, np.float32),
        reward=np.asarray(reward, np.float32),
        cursor=np.asarray(group, np.int64),
    )


def prompts(*texts: tuple[int, ...], first_cursor: int = 0) -> types.Prompts:
    """Prompts with these token ids."""
    return types.Prompts(
        cursor=np.arange(first_cursor, first_cursor + len(texts), dtype=np.int64),
        row=np.arange(len(texts), dtype=np.int64),
        texts=tuple(str(tokens) for tokens in texts),
        tokens=tuple(np.array(tokens, np.int32) for tokens in texts),
        answers=("",) * len(texts),
    )


@functools.partial(jax.jit, static_argnums=0)
def _forward(architecture: model.Architecture, params: Any, row: jax.Array) -> tuple[jax.Array, jax.Array]:
    positions = jnp.arange(row.shape[1], dtype=jnp.int32)[None]
    hidden = model.hidden_states(architecture, params, row, positions, jnp.ones_like(row), compute_dtype=jnp.float32)
    return hidden[0], model.head(architecture, params, compute_dtype=jnp.float32)


def full_logits(architecture: model.Architecture, params: Any, tokens: np.ndarray) -> np.ndarray:
    """f64[T, V] logits of one sequence: `hidden_and_head` multiplied."""
    hidden, head = hidden_and_head(architecture, params, tokens)
    return hidden @ head


def hidden_and_head(architecture: model.Architecture, params: Any, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f64[T, D] last hidden states of one sequence, and the head f64[D, V]; one row, no cache, no mask but causality.

    One compiled length serves all.

    What follows the sequence up to that length is ordinary text, which a causal model does not see.
    """
    row = np.full((1, 24), 99, np.int32)
    row[0, : len(tokens)] = tokens
    hidden, head = jax.device_get(_forward(architecture, jax.device_get(params), row))
    return hidden[: len(tokens)].astype(np.float64), head.astype(np.float64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def tokens_of(trajectories: types.Trajectories, index: int) -> tuple[np.ndarray, int, int]:
    """The tokens of one trajectory, and how many are prompt and response."""
    start = int(trajectories.length[:index].sum())
    prompt, response = int(trajectories.prompt_length[index]), int(trajectories.response_length[index])
    return trajectories.tokens[start : start + prompt + response], prompt, response


def collectives(text: str) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """(kind, replica groups) of every collective of a compiled program: those under a while loop, and the others.

    Groups are written as lists of devices, {{0,1},{2,3}}, also where the compiler names the mesh's axes.
    """
    bodies: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line and not line.startswith(" ") and line.rstrip().endswith("{"):
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            bodies[name] = []
        elif name:
            bodies[name].append(line)
    called = {
        caller: set(
            re.findall(
                r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.-]+)", " ".join(lines)
            )
        )
        for caller, lines in bodies.items()
    }
    looped: set[str] = set()
    waiting = set(re.findall(r"body=%?([\w.-]+)", text))
    while waiting:
        computation = waiting.pop()
        looped.add(computation)
        waiting |= called.get(computation, set()) - looped
    inside: set[tuple[str, str]] = set()
    outside: set[tuple[str, str]] = set()
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    for caller, lines in bodies.items():
        for line in lines:
            if match := re.search(rf" ({kinds})(?:-start)?\(.*replica_groups=(mesh\[.*?\] \{{.*?\}}|\S+?),? ", line):
                (inside if caller in looped else outside).add((match[1], listed_groups(match[2])))
    return inside, outside


def listed_groups(groups: str) -> str:
    """mesh['data'=2,'fsdp'=2] {'fsdp'} as {{0,1},{2,3}}; anything else as it is."""
    named = re.fullmatch(r"mesh\[(.*)\] \{(.*)\}", groups)
    if named is None:
        return groups
    sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
    crossed = re.findall(r"'(\w+)'", named[2])
    order = [*(axis for axis in sizes if axis not in crossed), *crossed]
    devices = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    across = math.prod(sizes[axis] for axis in crossed)
    lists = devices.transpose([list(sizes).index(axis) for axis in order]).reshape(-1, across)
    return "{" + ",".join("{" + ",".join(map(str, group)) + "}" for group in lists) + "}"
