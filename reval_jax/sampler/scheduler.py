"""The host's side of sampling: which response is in which slot, window after window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from reval_jax import batch, types
from reval_jax.sampler import sampling_op
from reval_jax.sampler import steps as programs_lib
from reval_jax.sampler.engine import Engine
from reval_jax.sampler.interface import Chunk, Interrupted

_Placed = tuple[int, int, tuple[int, int]]  # slot, row of the prefilled prompts, (prompt, sample)


class _PromptStore:
    """Prefilled prompts, kept from the first sample's admission to the last's."""

    def __init__(self, engine: Engine, params: Any, prompts: types.Prompts, requests: Sequence[tuple[int, int]]):
        self._engine, self._params, self._tokens = engine, params, prompts.tokens
        self._programs = programs_lib.of(engine)
        self._waiting: dict[int, int] = {}  # prompt → samples not yet admitted, in the order they will be
        for prompt, _ in requests:
            self._waiting[prompt] = self._waiting.get(prompt, 0) + 1
        self._ahead = list(self._waiting)  # not yet prefilled
        self._caches: dict[int, tuple[Any, int]] = {}  # prompt → its group's cache, its row there

    def take(self, prompt: int) -> tuple[Any, int]:
        """The cache that holds the prompt and its row there, for one of its samples."""
        if prompt not in self._caches:
            self._prefill_with(prompt)
        found = self._caches[prompt]
        self._waiting[prompt] -= 1
        if not self._waiting[prompt]:
            del self._caches[prompt]
        return found

    def _prefill_with(self, prompt: int) -> None:
        """Prefills this prompt and those after it that have its padded width, as many as one program takes."""
        width = batch.row_length(len(self._tokens[prompt]))
        rows = self._engine.prefill_rows(width)
        alike = (other for other in self._ahead if batch.row_length(len(self._tokens[other])) == width)
        group = [prompt, *(other for other in alike if other != prompt)][:rows]
        tokens = np.zeros((rows, width), np.int32)
        for row, member in enumerate(group):
            tokens[row, : len(self._tokens[member])] = self._tokens[member]
        cache = self._programs.prefill(self._params, tokens)
        self._caches |= {member: (cache, row) for row, member in enumerate(group)}
        self._ahead = [other for other in self._ahead if other not in group]


class _Slots:
    """Responses under way: the slot's request and how many tokens it has."""

    def __init__(self, engine: Engine):
        self.request: list[tuple[int, int] | None] = [None] * engine.decode_slots
        self.num_tokens = np.zeros(engine.decode_slots, np.int64)
        self._of_shard = engine.decode_slots // engine.row_shards

    def free(self) -> list[int]:
        """Empty slots, one of each row shard in turn, so that no shard waits for another."""
        empty = [slot for slot, request in enumerate(self.request) if request is None]
        return sorted(empty, key=lambda slot: (slot % self._of_shard, slot // self._of_shard))


def run(
    engine: Engine,
    params: Any,
    prompts: types.Prompts,
    requests: Sequence[tuple[int, int]],
    key: jax.Array,
    sampling: sampling_op.SamplingParams,
    *,
    stop_ids: np.ndarray,
    max_tokens: np.ndarray,
    should_stop: Callable[[], bool],
    choose_slots: Callable[[list[int]], Iterable[int]] = lambda free: free,
) -> Iterable[list[Chunk]]:
    """Samples a response to each (prompt, sample) request, in this order of admission; yields each window's new tokens.

    Args:
      stop_ids: of `programs.padded_stop_ids`.
      max_tokens: i32[prompts, samples] at which each response is cut.
      choose_slots: which of the free slots to fill now, and in what order; at least one where nothing is under way. No response
        depends on it (a test draws it at random).

    Raises:
      Interrupted: `should_stop` was true between two windows.
    """
    programs = programs_lib.of(engine)
    store = _PromptStore(engine, params, prompts, requests)
    slots, queue = _Slots(engine), list(reversed(requests))
    state = programs.fresh()
    while True:
        if queue:
            state = _admit(engine, programs, state, store, slots, queue, prompts, max_tokens, key, choose_slots)
        if not any(slots.request):
            return
        if should_stop():
            raise Interrupted
        state, made = programs.window(params, state, sampling, stop_ids)
        yield _collect(slots, jax.device_get(made))


def _admit(
    engine: Engine,
    programs: programs_lib.Programs,
    state: programs_lib.State,
    store: _PromptStore,
    slots: _Slots,
    queue: list[tuple[int, int]],
    prompts: types.Prompts,
    max_tokens: np.ndarray,
    key: jax.Array,
    choose_slots: Callable[[list[int]], Iterable[int]],
) -> programs_lib.State:
    """Fills free slots from the queue's end; one program call for each group of prompts that was prefilled together."""
    by_cache: dict[int, tuple[Any, list[_Placed]]] = {}
    for slot in choose_slots(slots.free()):
        if not queue:
            break
        request = slots.request[slot] = queue.pop()
        slots.num_tokens[slot] = 0
        cache, row = store.take(request[0])
        by_cache.setdefault(id(cache), (cache, []))[1].append((slot, row, request))
    for cache, placed in by_cache.values():
        state = programs.admit(state, cache, _admissions(engine, placed, prompts, max_tokens), key)
    return state


def _admissions(
    engine: Engine, placed: list[_Placed], prompts: types.Prompts, max_tokens: np.ndarray
) -> programs_lib.Admissions:
    num_slots, shards = engine.decode_slots, engine.row_shards
    of_shard = num_slots // shards
    slot_of, source, length, token, sample_of, limit = (np.zeros(num_slots, np.int32) for _ in range(6))
    cursor, count = np.zeros(num_slots, np.uint32), np.zeros(shards, np.int32)
    entries = programs_lib.Admissions(slot_of, source, length, token, cursor, sample_of, limit, count)
    for slot, row, (prompt, sample) in placed:
        shard = slot // of_shard
        at = shard * of_shard + entries.count[shard]
        entries.count[shard] += 1
        tokens = prompts.tokens[prompt]
        entries.slot[at], entries.source[at] = slot % of_shard, row
        entries.length[at], entries.token[at] = len(tokens), tokens[-1]
        entries.cursor[at], entries.sample[at] = prompts.cursor[prompt] % 2**32, sample
        entries.limit[at] = max_tokens[prompt, sample]
    return entries


def _collect(slots: _Slots, made: Any) -> list[Chunk]:
    """The new tokens of a `programs.Window` on the host, by response; finished responses leave their slots."""
    found = []
    for slot, request in enumerate(slots.request):
        if request is None:
            continue
        new = int(made.step[slot] - slots.num_tokens[slot])
        slots.num_tokens[slot] = made.step[slot]
        is_finished = not made.is_active[slot]
        found.append(
            Chunk(
                *request,
                made.token[slot, :new],
                made.log_prob[slot, :new],
                made.truncated_log_prob[slot, :new],
                is_finished,
            )
        )
        if is_finished:
            slots.request[slot] = None
    return found
