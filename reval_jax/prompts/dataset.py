"""Data set rows to prompt tokens, in an endless order that one integer resumes.

A data set is a `.jsonl` file with the fields `question` and `answer`, a TFDS directory of array_record files (read without
TensorFlow), or `procedural:NAME,…`. All rows are checked before the first is used.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reval_jax import config, keys, types
from reval_jax.data import rows
from reval_jax.prompts import templates
from reval_jax.verifier import checkers

if TYPE_CHECKING:
    import transformers


class Dataset(NamedTuple):
    """n rows, rendered and tokenized."""

    texts: tuple[str, ...]  # n rendered prompts
    tokens: tuple[np.ndarray, ...]  # n arrays i32[P_i], read-only
    answers: tuple[str, ...]  # n gold answers
    num_dropped: int  # rows dropped because their prompt is too long
    fingerprint: str  # 16 hex digits of the template and of every row's text, tokens and answer
    prompt_opens_think: bool  # every prompt ends with an open `<think>`, so each response begins inside it

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.texts)


def load(
    task: config.Task,
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    date: str = "",
    names: rows.SettingNames = rows.TASK,
) -> Dataset:
    """The data set that `task` names, each question rendered by `task.template` and tokenized.

    - "raw": the question unchanged. A beginning-of-sequence token comes first where the tokenizer is configured to add one; an
      end-of-sequence token is never added. SmolLM2 adds neither: `2+2=` is four tokens.
    - "chat": the question as the only user message in the tokenizer's own chat template, with the generation prompt.
    - "r1_distill", "qwen2_5_math": the paper's prompts (Figs. 12 and 13). Like "chat", they are rendered and then tokenized with
      add_special_tokens=False, so that there is only one beginning-of-sequence token.

    In "raw" and "chat" a non-empty `task.instruction` follows the question after a space.

    Args:
      date: that a chat template prints as today's, YYYY-MM-DD; empty means today.
      names: the settings that messages tell the user to change.

    Raises:
      ValueError: the data set can't be read, is empty or has bad rows; a question contains the text of a special
        token; the template doesn't fit the tokenizer, fails or leaves a question out; a prompt is longer than
        `task.max_prompt_tokens` with `task.long_prompts="error"`, or every prompt is with "drop".
    """
    source = f"{names.dataset}{task.dataset}"
    checked = rows.read(task.dataset, split=task.split, names=names)
    _check_answer_format(task, checked)
    templates.check(task, tokenizer)
    templates.refuse_forged_text(task, checked, tokenizer, source=source)
    texts, tokens = templates.render(task, checked, tokenizer, date=date or templates.today(), source=source)
    kept = _short_enough(task, checked, tokens, source)
    for ids in tokens:
        ids.flags.writeable = False
    return Dataset(
        texts=tuple(texts[i] for i in kept),
        tokens=tuple(tokens[i] for i in kept),
        answers=tuple(checked[i].answer for i in kept),
        num_dropped=len(checked) - len(kept),
        fingerprint=_fingerprint(task.template, [(texts[i], tokens[i], checked[i].answer) for i in kept]),
        prompt_opens_think=all(text.rstrip().endswith("<think>") for text in texts),
    )


def from_question(
    question: str, task: config.Task, tokenizer: transformers.PreTrainedTokenizerBase, *, date: str = ""
) -> types.Prompts:
    """One prompt: the question, rendered and tokenized as `load` does.

    Args:
      date: as for `load`.

    Raises:
      ValueError: the question is not usable text, contains a special token, or is longer than `task.max_prompt_tokens`.
    """
    row = rows.Row("--prompt", question, "")
    if not question or not rows.is_text(question):
        raise ValueError(
            f"the prompt {question!r} is empty or contains a character that is not text. Enter a question."
        )
    templates.check(task, tokenizer)
    templates.refuse_forged_text(task, [row], tokenizer, source="the prompt")
    (text,), (tokens,) = templates.render(task, [row], tokenizer, date=date or templates.today(), source="the prompt")
    if len(tokens) > task.max_prompt_tokens:
        raise ValueError(
            f"task.max_prompt_tokens={task.max_prompt_tokens}, but the prompt has {len(tokens)}. Shorten it, or raise the limit."
        )
    return types.Prompts(np.zeros(1, np.int64), np.zeros(1, np.int64), (text,), (tokens,), ("",))


def take(dataset: Dataset, cursor: int, n: int, *, seed: int) -> tuple[types.Prompts, int]:
    """The next n prompts of the endless order from `cursor`, and the cursor after them.

    Position c is entry c mod size of the permutation of epoch c // size, a function of (seed, epoch) alone. So taking n and
    then m prompts equals taking n + m, from any cursor.

    Raises:
      ValueError: a negative cursor or n.
    """
    if cursor < 0 or n < 0:
        raise ValueError(f"prompts.take got cursor={cursor}, n={n}. Both count prompts: use numbers from 0 up.")
    cursors = np.arange(cursor, cursor + n, dtype=np.int64)
    epochs, positions = np.divmod(cursors, dataset.size)
    row = np.empty(n, np.int64)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        row[in_epoch] = _permutation(seed, int(epoch), dataset.size)[positions[in_epoch]]
    prompts = types.Prompts(
        cursor=cursors,
        row=row,
        texts=tuple(dataset.texts[i] for i in row),
        tokens=tuple(dataset.tokens[i] for i in row),
        answers=tuple(dataset.answers[i] for i in row),
    )
    return prompts, cursor + n


def decode(
    tokenizer: transformers.PreTrainedTokenizerBase, responses: Sequence[np.ndarray], stop_ids: Sequence[int]
) -> list[str]:
    """The text of each response i32[n], with all special tokens but those that end or pad it.

    Tags like `</think>` are special tokens of some tokenizers, and the verifier must see them. A special token inside an answer
    must not vanish either: `4<|im_start|>2` is not 42.

    Args:
      stop_ids: token ids that end a response; those that are ordinary text are kept.
    """
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    ending = special & {*stop_ids, tokenizer.eos_token_id, tokenizer.pad_token_id}
    kept = []
    for response in responses:
        ids = response.tolist()
        while ids and ids[-1] in ending:
            del ids[-1]
        kept.append(ids)
    return tokenizer.batch_decode(kept, skip_special_tokens=False)


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """i64[size], the row order of one epoch, read-only."""
    order = keys.host_permutation(keys.named_key(seed, "prompts", epoch), size)
    order.flags.writeable = False
    return order


def _check_answer_format(task: config.Task, checked: list[rows.Row]) -> None:
    """Refuse an answer format that grades only a number for a procedural data set whose answers are expressions or lists."""
    procedural_task = checkers.needs_whole_answer([row.answer for row in checked])
    if task.answer_format in ("first_number", "last_number") and procedural_task:
        raise ValueError(
            f"task.answer_format={task.answer_format} with the data set {task.dataset}: an answer to {procedural_task} is more "
            "than a number, so no response could be right. Use task.answer_format=boxed, or free."
        )


def _short_enough(task: config.Task, checked: list[rows.Row], tokens: list[np.ndarray], source: str) -> list[int]:
    """Indices of the rows whose prompt is short enough, in order; `source` names the data set in messages."""
    too_long = [i for i, ids in enumerate(tokens) if len(ids) > task.max_prompt_tokens]
    if too_long and (task.long_prompts == "error" or len(too_long) == len(checked)):
        named = ", ".join(f"{checked[i].where} ({len(tokens[i])} tokens)" for i in too_long[: rows.SHOWN_ROWS])
        drop = "" if len(too_long) == len(checked) else ", or task.long_prompts=drop to drop the longer ones"
        raise ValueError(
            f"task.max_prompt_tokens={task.max_prompt_tokens}, but {len(too_long)} of the {len(checked)} prompts of "
            f"{source} with task.template={task.template} are longer: {named}. Set "
            f"task.max_prompt_tokens={max(map(len, tokens))}{drop}."
        )
    return [i for i, ids in enumerate(tokens) if len(ids) <= task.max_prompt_tokens]


def _fingerprint(template: str, prompts: list[tuple[str, np.ndarray, str]]) -> str:
    digest = hashlib.sha256(template.encode())
    for text, ids, answer in prompts:
        for part in (text.encode(), ids.astype("<i4").tobytes(), answer.encode()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]
