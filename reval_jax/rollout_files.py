"""The file of a round's prompts, responses and verdicts: gzip-compressed JSON lines, which `zcat` prints.

`tokens` are the sampled ids: a text tokenized again may become others. Files of earlier versions lack them.

gzip's checksum tells a damaged file, and the name in its header one that is in another round's place. Earlier versions wrote the
same lines without compression; both are read.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from reval_jax import durable, ragged, types

if TYPE_CHECKING:
    import transformers

COMPRESSED = ".gz"
_LEVEL = 6  # of compression: higher ones take several times as long for a few per cent


def write(
    file: Path,
    prompts: types.Prompts,
    trajectories: types.Trajectories,
    tokenizer: transformers.PreTrainedTokenizerBase,
) -> None:
    """Writes a round's prompts, responses and verdicts, one JSON line per trajectory; the file appears whole or not at all.

    Args:
      file: ends in `.jsonl.gz`; an earlier version's file of the round, without `.gz`, is deleted.
      prompts: of all the trajectories, with consecutive cursors.

    Raises:
      OSError: the file cannot be written.
    """
    # Without a time in the header equal rounds are equal bytes.
    with (
        durable.replacing(file) as target,
        gzip.GzipFile(filename=file.name, mode="wb", compresslevel=_LEVEL, fileobj=target, mtime=0) as lines,
    ):
        for row in _rows(prompts, trajectories, tokenizer):
            lines.write((json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode())
    file.with_suffix("").unlink(missing_ok=True)


def _rows(
    prompts: types.Prompts, trajectories: types.Trajectories, tokenizer: transformers.PreTrainedTokenizerBase
) -> Iterator[types.Json]:
    tokens = ragged.split(trajectories.tokens, trajectories.length)
    responses = [part[start:].tolist() for part, start in zip(tokens, trajectories.prompt_length, strict=True)]
    texts = tokenizer.batch_decode(responses, skip_special_tokens=False)
    log_probs = ragged.split(trajectories.log_prob, trajectories.response_length)
    first = int(prompts.cursor[0])
    for index, text in enumerate(texts):
        prompt = int(trajectories.cursor[index]) - first
        log_prob = float(log_probs[index].sum())
        yield {
            "prompt": prompts.texts[prompt],
            "response": text,
            "answer": prompts.answers[prompt],
            "verdict": types.VERDICTS[trajectories.verdict[index]],
            "reward": float(trajectories.raw_reward[index]),
            "is_truncated": bool(trajectories.is_truncated[index]),
            "num_tokens": int(trajectories.response_length[index]),
            "tokens": responses[index],
            "log_prob": log_prob if math.isfinite(log_prob) else None,  # JSON has no other numbers
        }


def read(file: Path) -> bytes:
    """The JSON lines of a file, compressed or not.

    Raises:
      ValueError: the file cannot be read, or its compressed content is damaged.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}. Name a readable file.") from error
    if file.suffix != COMPRESSED:
        return content
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # 16: gzip's header and checksum
    try:
        lines = stream.decompress(content)
    except zlib.error as error:
        raise ValueError(f"{file} is damaged ({error}). Restore the file from a copy, or delete it.") from error
    if not stream.eof or stream.unused_data:
        reason = "bytes follow its end" if stream.eof else "it ends too early"
        raise ValueError(f"{file} is damaged ({reason}). Restore the file from a copy, or delete it.")
    return lines


def check(file: Path) -> None:
    """Compares a round's file with its checksum and name; of an earlier version's, whether its lines are JSON.

    Raises:
      ValueError: the file is damaged, or is another round's.
    """
    lines = read(file)
    if file.suffix == COMPRESSED:
        # Ten bytes come before the name, and a zero byte after it.
        name = file.read_bytes()[10:].split(b"\0", 1)[0].decode("latin-1")
        if name != file.stem:
            raise ValueError(f"{file} was written as {name}. Give the file its own name, or delete it.")
    for number, line in enumerate(lines.splitlines(), start=1):
        try:
            json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}:{number} is not JSON ({error}). Restore the file from a copy.") from error


def delete_oldest(files: Mapping[int, Path], *, max_bytes: float) -> list[int]:
    """Deletes the files of the oldest rounds until the others have at most `max_bytes`; returns the rounds.

    Args:
      files: of each round; the newest is always kept.

    Raises:
      OSError: a file cannot be deleted.
    """
    sizes = {round: file.stat().st_size for round, file in sorted(files.items())}
    total, deleted = sum(sizes.values()), []
    for round in list(sizes)[:-1]:
        if total <= max_bytes:
            break
        files[round].unlink()
        total -= sizes[round]
        deleted.append(round)
    return deleted
