"""Data set rows to prompt tokens, in an endless order that one integer resumes.

A data set is a `.jsonl` file with the fields `question` and `answer`, or a TFDS directory of array_record files, which
is read without TensorFlow. Every row is checked before any is used.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reval_jax import config, keys, types

if TYPE_CHECKING:
    import transformers

USER_TEXT = "{question} Let's think step by step and output the final answer within \\boxed{{}}."
"""What the user says in the two paper templates (ReVal, arXiv 2603.23355, Figs. 12 and 13)."""

R1_DISTILL = "<｜begin▁of▁sentence｜><｜User｜>{user}<｜Assistant｜><think>\n"
QWEN2_5_MATH = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{{}}.<|im_end|>\n"
    "<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
)
MARKERS = {
    "r1_distill": ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
    "qwen2_5_math": ("<|im_start|>", "<|im_end|>"),
}
"""Texts a paper template is made of, each one token of the tokenizer it is for."""

SHOWN_PROBLEMS = 5  # rows an error message names


class Dataset(NamedTuple):
    """n rows, rendered and tokenized."""

    texts: tuple[str, ...]  # n rendered prompts
    tokens: tuple[np.ndarray, ...]  # n arrays i32[P_i], read-only
    answers: tuple[str, ...]  # n gold answers
    num_dropped: int  # rows left out because their prompt is too long
    fingerprint: str  # 16 hex digits of the template and of every row's text, tokens and answer
    thinks: bool  # every prompt ends with an open `<think>`, so a response begins inside it

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.texts)


class _Row(NamedTuple):
    where: str  # file:line, for messages
    question: str
    answer: str


def load(task: config.Task, tokenizer: transformers.PreTrainedTokenizerBase) -> Dataset:
    """The data set `task` names, each question rendered by `task.template` and tokenized.

    - "raw": the question as it is. Its tokens are those of the text alone, after the beginning-of-sequence token where
      the tokenizer is configured to add one; an end-of-sequence token is never added. SmolLM2 adds none: `2+2=` is four
      tokens.
    - "chat": the question as the only user message in the tokenizer's own chat template, with the generation prompt.
    - "r1_distill", "qwen2_5_math": the paper's prompts (Figs. 12 and 13). They are rendered and then tokenized with
      add_special_tokens=False, as "chat" is, so that no beginning-of-sequence token doubles.

    Raises:
      ValueError: a data set that can't be read, is empty or has bad rows; a question that contains the text of a
        special token; a template that doesn't fit the tokenizer; a prompt longer than `task.max_prompt_tokens` with
        `task.overlong="error"`, or every prompt with "drop".
    """
    rows = read(task.dataset, split=task.split)
    _check_template(task, tokenizer)
    _check_forgery(task, rows, _special_texts(task.template, tokenizer))
    texts = [_render(task.template, row.question, tokenizer) for row in rows]
    prefix = _prefix(task.template, tokenizer)
    tokens = [np.array(prefix + ids, np.int32) for ids in _encode(texts, tokenizer)]
    kept = _keep(task, rows, tokens)
    for ids in tokens:
        ids.flags.writeable = False
    return Dataset(
        texts=tuple(texts[i] for i in kept),
        tokens=tuple(tokens[i] for i in kept),
        answers=tuple(rows[i].answer for i in kept),
        num_dropped=len(rows) - len(kept),
        fingerprint=_fingerprint(task.template, [(texts[i], tokens[i], rows[i].answer) for i in kept]),
        thinks=all(text.rstrip().endswith("<think>") for text in texts),
    )


def from_question(question: str, task: config.Task, tokenizer: transformers.PreTrainedTokenizerBase) -> types.Prompts:
    """One prompt, the question rendered and tokenized as `load` does.

    Raises:
      ValueError: the question is not usable text, contains a special token, or is longer than `task.max_prompt_tokens`.
    """
    rows = [_Row("--prompt", question, "")]
    if not question or any(0xD800 <= ord(character) <= 0xDFFF or character == "\0" for character in question):
        raise ValueError(f"the prompt {question!r} is empty or holds a character that is no text. Give a question.")
    _check_template(task, tokenizer)
    _check_forgery(task, rows, _special_texts(task.template, tokenizer))
    text = _render(task.template, question, tokenizer)
    tokens = np.array(_prefix(task.template, tokenizer) + _encode([text], tokenizer)[0], np.int32)
    if len(tokens) > task.max_prompt_tokens:
        raise ValueError(
            f"task.max_prompt_tokens={task.max_prompt_tokens}, but the prompt has {len(tokens)}. Shorten it, or raise the limit."
        )
    return types.Prompts(np.zeros(1, np.int64), np.zeros(1, np.int64), (text,), (tokens,), ("",))


def take(dataset: Dataset, cursor: int, n: int, *, seed: int) -> tuple[types.Prompts, int]:
    """The n prompts at `cursor` of the endless order, and the cursor behind them.

    Position c is entry c mod size of the permutation of epoch c // size, which is a function of (seed, epoch) alone. So
    taking n and then m gives what taking n + m gives, from any cursor.

    Raises:
      ValueError: a negative cursor or n.
    """
    if cursor < 0 or n < 0:
        raise ValueError(f"prompts.take got cursor={cursor}, n={n}. Both count prompts: use numbers from 0 up.")
    numbers = np.arange(cursor, cursor + n, dtype=np.int64)
    epochs, positions = np.divmod(numbers, dataset.size)
    row = np.empty(n, np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        row[chosen] = _permutation(seed, int(epoch), dataset.size)[positions[chosen]]
    prompts = types.Prompts(
        cursor=numbers,
        row=row,
        texts=tuple(dataset.texts[i] for i in row),
        tokens=tuple(dataset.tokens[i] for i in row),
        answers=tuple(dataset.answers[i] for i in row),
    )
    return prompts, cursor + n


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """i64[size], the row order of one epoch, read-only."""
    order = keys.host_permutation(keys.named_key(seed, "prompts", epoch), size)
    order.flags.writeable = False
    return order


def read(dataset: str, *, split: str = "train") -> list[_Row]:
    """The rows of a `.jsonl` file or of one split of a TFDS directory, with where each stands.

    Raises:
      ValueError: unreadable, empty, or naming the first bad rows: a missing, empty or non-text field, a NUL or lone
        surrogate in it, a question that stands twice.
    """
    path = Path(dataset)
    if path.is_dir():
        records: Iterable[tuple[str, Any]] = _tfds_records(path, split)
    elif path.suffix == ".jsonl" and path.is_file():
        records = _jsonl_records(path)
    else:
        found = "a file of another kind" if path.exists() else "nothing there"
        raise ValueError(
            f"task.dataset={dataset} is {found}, not a .jsonl file or a TFDS directory. Name an existing one, for "
            'example a .jsonl file with lines like {"question": "2+2=", "answer": "4"}.'
        )
    rows: list[_Row] = []
    problems: list[str] = []
    first_seen: dict[str, str] = {}
    for where, record in records:
        problem = _row_problem(record, first_seen)
        if problem:
            problems.append(f"{where}: {problem}")
            continue
        row = _Row(where, record["question"], record["answer"])
        first_seen[row.question] = where
        rows.append(row)
    _refuse(f"task.dataset={dataset}", problems, "Mend or remove them.")
    if not rows:
        raise ValueError(f"task.dataset={dataset} has no rows, so there is nothing to train on. Add at least one.")
    return rows


def _jsonl_records(path: Path) -> Iterator[tuple[str, Any]]:
    """`file:line` and the parsed line, or the error that parsing it raised, of every line that is not blank."""
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise ValueError(f"task.dataset={path} can't be read: {error.strerror}. Name a readable file.") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:  # reported with the other bad rows
                yield f"{path}:{number}", error


def _tfds_records(path: Path, split: str) -> Iterator[tuple[str, Any]]:
    """`directory[split]:index` and the row, its texts decoded, of every row."""
    import tensorflow_datasets as tfds  # imported where it is used: it costs a second that a .jsonl run need not pay

    try:
        source = tfds.builder_from_directory(str(path)).as_data_source(split)
    except Exception as error:  # TFDS raises many kinds; each means that this directory can't be read as asked
        raise ValueError(
            f"task.dataset={path} with task.split={split} can't be read as a TFDS directory: {error}. Name a version "
            "directory (it holds dataset_info.json) written with file_format='array_record', and one of its splits."
        ) from error
    for index in range(len(source)):
        record = {}
        for name, value in source[index].items():
            try:
                record[name] = value.decode("utf-8") if isinstance(value, bytes) else value
            except UnicodeDecodeError:
                record[name] = value  # still bytes, so reported with the other bad rows
        yield f"{path}[{split}]:{index}", record


def _row_problem(record: Any, first_seen: dict[str, str]) -> str | None:
    """What is wrong with one row, None for nothing."""
    if isinstance(record, Exception):
        return f"not JSON ({record})"
    if not isinstance(record, dict):
        return f"a {type(record).__name__}, not an object with 'question' and 'answer'"
    for field in ("question", "answer"):
        if field not in record:
            return f"no field '{field}' (found {', '.join(map(repr, record)) or 'none'})"
        value = record[field]
        if not isinstance(value, str):
            return f"'{field}' is a {type(value).__name__}, not a string: {str(value)[:40]}"
        if not value.strip():
            return f"'{field}' is empty"
        if "\0" in value:
            return f"'{field}' contains a NUL character"
        if any("\ud800" <= character <= "\udfff" for character in value):
            return f"'{field}' contains a lone surrogate, which is not text"
    if record["question"] in first_seen:
        return f"the same question as {first_seen[record['question']]}"
    return None


def _refuse(what: str, problems: list[str], remedy: str) -> None:
    """Raise one ValueError that names the first problems, if there are any."""
    if problems:
        more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        rows = f"{len(problems)} row{'s' * (len(problems) > 1)}"
        raise ValueError(f"{what}: {rows} can't be used: {'; '.join(problems[:SHOWN_PROBLEMS])}{more}. {remedy}")


def _check_template(task: config.Task, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    if task.template == "chat" and not tokenizer.chat_template:
        raise ValueError(
            "task.template=chat, but the model's tokenizer has no chat template, so there is none to render with. Use "
            "task.template=raw, or an instruction-tuned model."
        )
    for marker in MARKERS.get(task.template, ()):
        if tokenizer.encode(marker, add_special_tokens=False) != [tokenizer.convert_tokens_to_ids(marker)]:
            raise ValueError(
                f"task.template={task.template} is made of {marker}, which is not one token of this model's tokenizer: "
                "the model was trained on other prompts. Use task.template=chat or raw."
            )


def _special_texts(template: str, tokenizer: transformers.PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Texts that a question must not contain, because they become tokens that no user can write.

    An added token that is not marked special counts only if a template is made of it: R1-Distill's `<｜User｜>` is such
    a one, Gemma's `<b>` is not.
    """
    rendered = "".join(MARKERS.get(template, ()))
    if template == "r1_distill":
        rendered += "<think></think>"
    elif template == "chat":
        rendered = str(tokenizer.chat_template)
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special or token.content in rendered}
    return tuple(sorted(text for text in special | set(tokenizer.all_special_tokens) if text.strip()))


def _check_forgery(task: config.Task, rows: list[_Row], special: tuple[str, ...]) -> None:
    problems = [
        f"{row.where}: 'question' contains {text!r}" for row in rows for text in special if text in row.question
    ]
    remedy = "That is the text of a special token: it would end or forge a turn. Remove it."
    _refuse(f"task.dataset={task.dataset}", problems, remedy)


def _render(template: str, question: str, tokenizer: transformers.PreTrainedTokenizerBase) -> str:
    if template == "raw":
        return question
    if template == "chat":
        return str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
            )
        )
    layout = R1_DISTILL if template == "r1_distill" else QWEN2_5_MATH
    return layout.format(user=USER_TEXT.format(question=question))


def _prefix(template: str, tokenizer: transformers.PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-sequence token, for a raw prompt, where the tokenizer adds one."""
    added = tokenizer("").input_ids
    if template == "raw" and added and added[0] == tokenizer.bos_token_id:
        return [added[0]]
    return []


def _encode(texts: list[str], tokenizer: transformers.PreTrainedTokenizerBase) -> list[list[int]]:
    # verbose=False: the tokenizer's warning about its own length limit says nothing that max_prompt_tokens does not.
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False).input_ids


def _keep(task: config.Task, rows: list[_Row], tokens: list[np.ndarray]) -> list[int]:
    """Indices of the rows whose prompt is short enough, in order."""
    long = [i for i, ids in enumerate(tokens) if len(ids) > task.max_prompt_tokens]
    if long and (task.overlong == "error" or len(long) == len(rows)):
        named = ", ".join(f"{rows[i].where} ({len(tokens[i])} tokens)" for i in long[:SHOWN_PROBLEMS])
        drop = "" if len(long) == len(rows) else ", or task.overlong=drop to leave the longer ones out"
        raise ValueError(
            f"task.max_prompt_tokens={task.max_prompt_tokens}, but {len(long)} of the {len(rows)} prompts of "
            f"task.dataset={task.dataset} with task.template={task.template} are longer: {named}. Set "
            f"task.max_prompt_tokens={max(map(len, tokens))}{drop}."
        )
    return [i for i, ids in enumerate(tokens) if len(ids) <= task.max_prompt_tokens]


def _fingerprint(template: str, rows: list[tuple[str, np.ndarray, str]]) -> str:
    digest = hashlib.sha256(template.encode())
    for text, ids, answer in rows:
        for part in (text.encode(), ids.astype("<i4").tobytes(), answer.encode()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]
