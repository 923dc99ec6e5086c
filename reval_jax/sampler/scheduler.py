"""The host's side of sampling: puts requests into free slots and collects their tokens, window after window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from reval_jax import batch, model, types
from reval_jax.sampler import sampling_op, steps
from reval_jax.sampler.engine import Engine
from reval_jax.sampler.interface import Chunk, Interrupted

_Placed = tuple[int, int, tuple[int, int]]  # slot, row of the prompt in its prefill cache, (prompt, sample)


class Job(NamedTuple):
    """The responses to sample in one call, and how."""

    engine: Engine
    params: model.Params  # the sampler's copy
    prompts: types.Prompts
    requests: Sequence[tuple[int, int]]  # (prompt, sample), in their order of admission
    key: jax.Array  # the call's
    sampling: sampling_op.SamplingParams
    stop_ids: np.ndarray  # from `steps.padded_stop_ids`
    max_tokens: np.ndarray  # i32[prompts, samples]: the limit of each response
    records_mean_log_prob: bool = False


class _PromptStore:
    """Prefilled prompts, each kept until its last sample is admitted."""

    def __init__(self, job: Job):
        self._engine, self._params, self._tokens = job.engine, job.params, job.prompts.tokens
        self._prefill = steps.compiled(job.engine).prefill
        self._waiting: dict[int, int] = {}  # prompt → samples not yet admitted, in their order of admission
        for prompt, _ in job.requests:
            self._waiting[prompt] = self._waiting.get(prompt, 0) + 1
        self._not_prefilled = list(self._waiting)
        self._caches: dict[int, tuple[model.Caches, int]] = {}  # prompt → its group's cache, its row in it

    def take(self, prompt: int) -> tuple[model.Caches, int]:
        """The cache that holds the prompt, and its row in it, for one of its samples."""
        if prompt not in self._caches:
            self._prefill_with(prompt)
        cache_and_row = self._caches[prompt]
        self._waiting[prompt] -= 1
        if not self._waiting[prompt]:
            del self._caches[prompt]
        return cache_and_row

    def _prefill_with(self, prompt: int) -> None:
        """Prefills this prompt and later ones of the same padded width, as many as one program takes."""
        width = batch.row_length(len(self._tokens[prompt]))
        rows = self._engine.prefill_rows(width)
        same_width = (other for other in self._not_prefilled if batch.row_length(len(self._tokens[other])) == width)
        group = [prompt, *(other for other in same_width if other != prompt)][:rows]
        tokens = np.zeros((rows, width), np.int32)
        for row, member in enumerate(group):
            tokens[row, : len(self._tokens[member])] = self._tokens[member]
        cache = self._prefill(self._params, tokens)
        self._caches |= {member: (cache, row) for row, member in enumerate(group)}
        self._not_prefilled = [other for other in self._not_prefilled if other not in group]


class _Fetched(NamedTuple):
    """A window that was fetched from the devices, with what was in the slots before it."""

    window: steps.Window  # of NumPy arrays
    request: list[tuple[int, int] | None]
    num_tokens: np.ndarray  # i64[slots]


class _Slots:
    """The request in each slot, None in a free one, and its number of response tokens so far."""

    def __init__(self, engine: Engine):
        self.request: list[tuple[int, int] | None] = [None] * engine.decode_slots
        self.num_tokens = np.zeros(engine.decode_slots, np.int64)
        self._per_shard = engine.decode_slots // engine.row_shards

    def free(self) -> list[int]:
        """Free slots, one of each row shard in turn, so that the shards get equal work."""
        empty = [slot for slot, request in enumerate(self.request) if request is None]
        return sorted(empty, key=lambda slot: (slot % self._per_shard, slot // self._per_shard))

    def after(self, window: steps.Window) -> _Fetched:
        """The window with what was in the slots before it; finished responses leave their slots."""
        fetched = _Fetched(window, self.request.copy(), self.num_tokens)
        self.num_tokens = np.asarray(window.step, np.int64)
        for slot in np.flatnonzero(~window.is_active):
            self.request[slot] = None
        return fetched


def _in_order(free: list[int]) -> list[int]:
    return free


def run(
    job: Job, *, should_stop: Callable[[], bool], choose_slots: Callable[[list[int]], Iterable[int]] = _in_order
) -> Iterable[list[Chunk]]:
    """Samples a response to each request; yields the new tokens of each window, while the devices decode the next one.

    Args:
      choose_slots: the free slots to fill now, in order, at least one if no response is under way; tests vary it, to show that no
        response depends on it.

    Raises:
      Interrupted: `should_stop` returned True between two windows, and the chunks of the last one have been yielded.
    """
    programs = steps.compiled(job.engine)
    store, slots, queue = _PromptStore(job), _Slots(job.engine), list(reversed(job.requests))
    state = programs.fresh()
    case = steps.case(job.engine, job.sampling, records_mean_log_prob=job.records_mean_log_prob)
    fetched: _Fetched | None = None  # the last window, whose chunks the caller has not got yet
    while True:
        window = None
        try:
            if queue:
                state = _admit(job, programs, state, _place(queue, store, slots, choose_slots))
            is_stopped = any(slots.request) and should_stop()
            if any(slots.request) and not is_stopped:
                state, window = programs.window(job.params, state, job.sampling, job.stop_ids, case)
        except Exception:
            if fetched:  # Whatever failed, these tokens are on the host.
                yield _chunks(fetched)
            raise
        if fetched:  # What the caller does with them, it does while the devices decode the next window.
            yield _chunks(fetched)
        if is_stopped:
            raise Interrupted
        if window is None:
            return
        fetched = slots.after(jax.device_get(window))


def _place(
    queue: list[tuple[int, int]],
    store: _PromptStore,
    slots: _Slots,
    choose_slots: Callable[[list[int]], Iterable[int]],
) -> Iterable[tuple[model.Caches, list[_Placed]]]:
    """Moves requests from the queue's end to free slots; groups them by the cache that holds their prompts."""
    by_cache: dict[int, tuple[model.Caches, list[_Placed]]] = {}
    for slot in choose_slots(slots.free()):
        if not queue:
            break
        request = slots.request[slot] = queue.pop()
        slots.num_tokens[slot] = 0
        cache, row = store.take(request[0])
        by_cache.setdefault(id(cache), (cache, []))[1].append((slot, row, request))
    return by_cache.values()


def _admit(
    job: Job, programs: steps.Programs, state: steps.State, groups: Iterable[tuple[model.Caches, list[_Placed]]]
) -> steps.State:
    """The state with the groups' requests in their slots. Holds the prompts' caches no longer than it runs."""
    for cache, placed in groups:
        state = programs.admit(state, cache, _admissions(job, placed), job.key)
    return state


def _admissions(job: Job, placed: list[_Placed]) -> steps.Admissions:
    """The arguments of `admit` for requests whose prompts were prefilled together."""
    num_slots, shards = job.engine.decode_slots, job.engine.row_shards
    per_shard = num_slots // shards
    slot_of, source, length, token, sample_of, limit = (np.zeros(num_slots, np.int32) for _ in range(6))
    cursor, count = np.zeros(num_slots, np.uint32), np.zeros(shards, np.int32)
    entries = steps.Admissions(slot_of, source, length, token, cursor, sample_of, limit, count)
    for slot, row, (prompt, sample) in placed:
        shard = slot // per_shard
        at = shard * per_shard + entries.count[shard]
        entries.count[shard] += 1
        tokens = job.prompts.tokens[prompt]
        entries.slot[at], entries.source[at] = slot % per_shard, row
        entries.length[at], entries.token[at] = len(tokens), tokens[-1]
        entries.cursor[at], entries.sample[at] = job.prompts.cursor[prompt] % 2**32, sample
        entries.limit[at] = job.max_tokens[prompt, sample]
    return entries


def _chunks(fetched: _Fetched) -> list[Chunk]:
    """The new tokens of each response in a window."""
    window = fetched.window
    columns = [np.asarray(column) for column in (window.token, window.log_prob, window.truncated_log_prob)]
    chunks = []
    for slot, request in enumerate(fetched.request):
        if request is not None:
            num_new = int(window.step[slot] - fetched.num_tokens[slot])
            token, log_prob, truncated_log_prob = (column[slot, :num_new] for column in columns)
            mean = None if window.mean_log_prob is None else np.asarray(window.mean_log_prob)[slot, :num_new]
            chunks.append(Chunk(*request, token, log_prob, truncated_log_prob, not window.is_active[slot], mean))
    return chunks
