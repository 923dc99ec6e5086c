"""The journal of an unfinished round returns exactly the responses that were added for this round and policy."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from reval_jax import journal, types


def make(lengths, seed=0, *, has_mean_log_prob=False):
    """Responses of these lengths with random log-probabilities; (prompt, sample) counts up."""
    rng = np.random.default_rng(seed)
    return [
        types.Response(
            prompt=index // 3,
            sample=index % 3,
            tokens=rng.integers(0, 150_000, length).astype(np.int32),
            log_prob=-rng.exponential(5, length).astype(np.float32),
            truncated_log_prob=-rng.exponential(5, length).astype(np.float32),
            is_truncated=bool(rng.integers(2)),
            mean_log_prob=-rng.exponential(5, length).astype(np.float32) if has_mean_log_prob else None,
        )
        for index, length in enumerate(lengths)
    ]


def assert_same(actual, expected):
    """Checks that these are the same responses bit for bit, in any order."""
    assert actual.keys() == {(response.prompt, response.sample) for response in expected}
    for response in expected:
        other = actual[response.prompt, response.sample]
        assert (other.prompt, other.sample, other.is_truncated) == (
            response.prompt,
            response.sample,
            response.is_truncated,
        )
        assert isinstance(other.is_truncated, bool)
        assert (other.mean_log_prob is None) == (response.mean_log_prob is None)
        optional = () if response.mean_log_prob is None else ("mean_log_prob",)
        for name in ("tokens", "log_prob", "truncated_log_prob", *optional):
            value, expected_value = getattr(other, name), getattr(response, name)
            assert (value.dtype, value.shape, value.tobytes()) == (
                expected_value.dtype,
                expected_value.shape,
                expected_value.tobytes(),
            )


def files_of(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(
    strategies.lists(strategies.integers(1, 9), min_size=1, max_size=8),
    strategies.sets(strategies.integers(1, 7)),
    strategies.integers(0, 2**32 - 1),
)
def test_a_journal_returns_the_added_responses_bit_for_bit(lengths, cuts, seed):
    responses = make(lengths, seed)
    edges = [0, *sorted(cut for cut in cuts if cut < len(responses)), len(responses)]
    with tempfile.TemporaryDirectory() as directory:
        for start, end in itertools.pairwise(edges):
            # A reopened journal continues after the files of the previous one.
            journal.Journal(Path(directory) / "process", "a").add(responses[start:end], 0)
        assert_same(journal.Journal(Path(directory) / "process", "a").read(0, 1000), responses)
        assert len(files_of(Path(directory))) == len(edges) - 1


def test_mean_log_probabilities_are_kept_and_responses_without_them_are_sampled_again_by_who_needs_them(tmp_path):
    with_means = make([4, 2, 7], has_mean_log_prob=True)
    without = [response._replace(prompt=response.prompt + 5) for response in make([3, 1], seed=1)]
    store = journal.Journal(tmp_path, "a")
    store.add(with_means, 0)
    store.add(without, 0)
    assert_same(store.read(0, 1000), with_means + without)
    assert_same(store.read(0, 1000, needs_mean_log_prob=True), with_means)


def test_nan_infinity_and_negative_zero_are_kept_bit_for_bit(tmp_path):
    odd = np.array([-0.0, np.nan, -np.inf, 1e-45, -3.4e38], np.float32)
    response = types.Response(2, 5, np.arange(5, dtype=np.int32), odd, -odd, True)
    store = journal.Journal(tmp_path, "a")
    store.add([response], 0)
    assert_same(store.read(0, 1000), [response])


def test_a_new_journal_is_empty_and_writes_nothing(tmp_path):
    assert journal.Journal(tmp_path / "process", "a").read(0, 1000) == {}
    assert not (tmp_path / "process").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_torn_file_is_skipped_and_not_overwritten_by_the_next(tmp_path, share):
    responses = make([4, 2, 7, 1, 3, 5])
    store = journal.Journal(tmp_path, "a")
    for start in (0, 2, 4):
        store.add(responses[start : start + 2], 0)
    torn = files_of(tmp_path)[1]
    torn.write_bytes(torn.read_bytes()[: int(share * torn.stat().st_size)])
    again = journal.Journal(tmp_path, "a")
    assert_same(again.read(0, 1000), responses[:2] + responses[4:])
    again.add(responses[2:4], 0)
    assert_same(again.read(0, 1000), responses)


def test_a_flipped_byte_is_detected(tmp_path):
    """A readable file with wrong content would change the run, so its checksum must be checked."""
    store = journal.Journal(tmp_path, "a")
    store.add(make([50]), 0)
    (file,) = files_of(tmp_path)
    whole = bytearray(file.read_bytes())
    at = whole.index(make([50])[0].tokens.tobytes())
    whole[at + 8] ^= 1
    file.write_bytes(whole)
    assert store.read(0, 1000) == {}


def test_a_new_file_follows_the_last_one_also_when_one_was_deleted(tmp_path):
    responses, store = make([3, 4, 2]), journal.Journal(tmp_path, "a")
    for start in range(2):
        store.add(responses[start : start + 1], 0)
    files_of(tmp_path)[0].unlink()
    store.add(responses[2:], 0)
    assert_same(store.read(0, 1000), responses[1:])


def test_each_kind_of_trouble_has_its_name(tmp_path):
    store = journal.Journal(tmp_path, "a")
    store.add(make([3]), 0)
    files_of(tmp_path)[0].write_bytes(b"")
    (tmp_path / "a" / journal.VERDICTS).write_bytes(b"damaged\n")
    kinds = []
    store = journal.Journal(tmp_path, "a", log=lambda kind, text: kinds.append(kind))
    store.read(0, 1000)
    kept = store.verdicts()
    (tmp_path / "a" / journal.VERDICTS).unlink()
    (tmp_path / "a" / journal.VERDICTS).mkdir()
    kept.keep("a", ("done", 1.0, ""))
    kept.close()
    assert kinds == ["damage", "damaged verdicts", "write verdicts"]


def test_an_incomplete_write_is_not_read_and_is_overwritten(tmp_path, monkeypatch):
    store, responses = journal.Journal(tmp_path, "a"), make([3, 4])
    store.add(responses[:1], 0)
    with monkeypatch.context() as patch:
        patch.setattr(journal.durable.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space")))
        with pytest.raises(OSError, match="no space"):
            store.add(responses[1:], 0)
    again = journal.Journal(tmp_path, "a")
    assert_same(again.read(0, 1000), responses[:1])
    again.add(responses[1:], 0)
    assert_same(again.read(0, 1000), responses)
    assert [file.suffix for file in files_of(tmp_path)] == [".npz", ".npz"]


def test_opening_a_journal_deletes_those_of_other_rounds_and_policies(tmp_path):
    journal.Journal(tmp_path / "process_0_of_2", "round_1_policy_2").add(make([3]), 0)
    journal.Journal(tmp_path / "process_1_of_2", "round_1_policy_2").add(make([4]), 0)
    store = journal.Journal(tmp_path / "process_0_of_2", "round_1_policy_2")
    assert_same(store.read(0, 1000), make([3]))
    assert journal.Journal(tmp_path / "process_0_of_2", "round_1_policy_3").read(0, 1000) == {}
    assert store.read(0, 1000) == {}
    # The journal of the other process is unchanged.
    assert_same(journal.Journal(tmp_path / "process_1_of_2", "round_1_policy_2").read(0, 1000), make([4]))


def test_prompts_are_counted_from_where_a_wave_begins(tmp_path):
    responses = make([4, 2, 7, 1, 3, 5])
    store = journal.Journal(tmp_path, "a")
    store.add(responses[:4], 0)
    store.add(responses[4:], 1000)
    assert_same(store.read(0, 1000), responses[:4])
    assert_same(store.read(1000, 1000), responses[4:])
    assert store.read(2000, 1000) == {}


def test_no_flipped_bit_and_no_missing_byte_stops_a_read_or_changes_a_response(tmp_path):
    """Every bit of the structure, and one in eight of the rest: some say that the file is encrypted or of another version."""
    responses, said = make([3, 2]), []
    journal.Journal(tmp_path / "process", "a").add(responses, 0)
    (file,) = files_of(tmp_path)
    whole = file.read_bytes()
    store = journal.Journal(tmp_path / "process", "a", log=lambda kind, text: said.append(text))
    kinds = set()
    for index in range(len(whole)):
        is_structure = whole[index : index + 2] == b"PK" or whole[max(0, index - 30) : index].rfind(b"PK") >= 0
        for bit in range(8) if is_structure else (index % 8,):
            file.write_bytes(whole[:index] + bytes([whole[index] ^ 1 << bit]) + whole[index + 1 :])
            found = store.read(0, 1000)
            kinds.add(bool(found))
            if found:
                assert_same(found, responses)
        file.write_bytes(whole[:index])
        assert store.read(0, 1000) == {}
    assert kinds == {True, False}
    assert "1 of 1 files of the journal" in said[0]
    assert "their responses are sampled again" in said[0]
    assert journal.damaged_files(tmp_path) == [file]


@pytest.mark.parametrize("place", [".", "process_0_of_1", "process_0_of_1/a", "process_0_of_1/a/000000.npz"])
def test_a_file_or_directory_in_the_wrong_place_stops_nothing(tmp_path, place):
    path = tmp_path / "journal" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    if place.endswith(".npz"):
        path.mkdir()
    else:
        path.write_text("")
    said = []
    store = journal.Journal(tmp_path / "journal" / "process_0_of_1", "a", log=lambda kind, text: said.append(text))
    assert store.read(0, 1000) == {}
    if place.endswith(".npz"):
        store.add(make([3]), 0)
        assert_same(store.read(0, 1000), make([3]))
        assert len(said) == 2
    else:
        with pytest.raises(OSError):  # noqa: PT011  # the caller says so, and goes on
            store.add(make([3]), 0)
