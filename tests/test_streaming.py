"""Text is passed on as tokens arrive, and the pieces add up to the response's text."""

from __future__ import annotations

from typing import ClassVar

import hypothesis
import numpy as np
from hypothesis import strategies
from support import hf_checkpoints

from reval_jax import inference, prompts, sampler


class Bytes:
    """A tokenizer whose tokens are bytes; 256 is special and ends a response."""

    all_special_ids = (256,)
    added_tokens_decoder: ClassVar = {}
    eos_token_id = pad_token_id = 256

    def batch_decode(self, sequences, *, skip_special_tokens):
        assert not skip_special_tokens
        return [bytes(tokens).decode("utf-8", errors="replace") for tokens in sequences]


def new(sample, tokens, *, is_finished=False, prompt=0):
    """One window's tokens of one response."""
    scores = np.zeros(len(tokens), np.float32)
    return sampler.Chunk(prompt, sample, np.array(tokens, np.int32), scores, scores, is_finished)


def stream(windows, tokenizer=None):
    """The arguments of each call of the listener for these windows."""
    texts = []
    listen = inference.streamed_text(tokenizer or Bytes(), lambda *arguments: texts.append(arguments), (256,))
    for window in windows:
        listen(window)
    return texts


def test_a_character_whose_bytes_are_not_all_there_waits_for_them():
    euro = list("a€".encode())
    texts = stream([[new(0, euro[:2])], [new(0, euro[2:3])], [new(0, euro[3:])], [new(0, [98, 256], is_finished=True)]])
    assert texts == [(0, "a", False), (0, "", False), (0, "€", False), (0, "b", True)]


def test_a_response_that_ends_inside_a_character_says_so():
    assert stream([[new(0, [97, 0xE2])], [new(0, [0x82], is_finished=True)]]) == [(0, "a", False), (0, "\ufffd", True)]


def test_bytes_that_are_no_character_are_passed_on_when_the_next_shows_it():
    texts = stream([[new(0, [97, 0xE2])], [new(0, [98])], [new(0, [256], is_finished=True)]])
    assert texts == [(0, "a", False), (0, "\ufffdb", False), (0, "", True)]


def test_samples_that_grow_together_are_kept_apart():
    texts = stream([[new(0, [97]), new(1, [120])], [new(1, [121], is_finished=True), new(0, [98])]])
    assert texts == [(0, "a", False), (1, "x", False), (1, "y", True), (0, "b", False)]


windows = strategies.lists(strategies.integers(1, 4), max_size=30)


def cut(tokens, sizes):
    """The tokens as successive windows of these sizes; the last window has the remaining tokens and ends the response."""
    pieces = np.split(np.array(tokens), np.cumsum(sizes)[np.cumsum(sizes) < len(tokens)])
    return [[new(0, piece.tolist(), is_finished=index == len(pieces) - 1)] for index, piece in enumerate(pieces)]


@hypothesis.settings(deadline=None)
@hypothesis.given(strategies.binary(min_size=1, max_size=30), windows)
def test_the_passed_on_pieces_add_up_to_the_text_for_any_bytes_and_windows(tokens, sizes):
    texts = stream(cut(list(tokens), sizes))
    assert "".join(text for _, text, _ in texts) == tokens.decode("utf-8", errors="replace")
    assert [is_complete for *_, is_complete in texts] == [False] * (len(texts) - 1) + [True]


TOKENIZER = hf_checkpoints.tiny_tokenizer()


@hypothesis.settings(deadline=None)
@hypothesis.given(
    strategies.lists(strategies.integers(0, hf_checkpoints.VOCABULARY - 1), min_size=1, max_size=20), windows
)
def test_a_real_tokenizers_stream_is_its_text(tokens, sizes):
    texts = stream(cut(tokens, sizes), TOKENIZER)
    assert "".join(text for _, text, _ in texts) == prompts.decode(TOKENIZER, [np.array(tokens)], (256,))[0]
