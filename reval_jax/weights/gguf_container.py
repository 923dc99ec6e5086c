"""The GGUF container, versions 2 and 3, little-endian: metadata and memory-mapped tensors.

Format: ggml/docs/gguf.md. Only the number types and the de-quantisation of the `gguf` package are used: its reader takes
seconds to make a NumPy view of every string of a vocabulary, and does not check lengths.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

# GGUF metadata value types that are plain numbers; 8 is a string and 9 an array.
_NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32  # bytes, unless general.alignment overrides it
_LARGEST_ALIGNMENT = 1 << 20


class StoredTensor(NamedTuple):
    """One tensor of a file."""

    shape: tuple[int, ...]  # outermost dimension first, as in NumPy (reversed in the file)
    kind: gguf.GGMLQuantizationType  # number type or quantisation
    stored: np.ndarray  # u8[..., bytes of a row], memory-mapped


class Gguf(NamedTuple):
    """An open GGUF file."""

    file: Path  # for messages
    metadata: dict[str, Any]  # key -> number, bool, string or list of these
    tensors: dict[str, StoredTensor]  # GGUF name -> tensor


class _Cursor:
    """Reads values in sequence; EOFError at the end of the file."""

    def __init__(self, content: np.ndarray):
        self.content, self.position = content, 0

    def take(self, num_bytes: int) -> memoryview:
        end = self.position + num_bytes
        if end > self.content.size:
            raise EOFError(f"byte {end} is needed, but the file has {self.content.size} bytes")
        start, self.position = self.position, end
        return self.content[start:end].data

    def unpack(self, layout: str) -> Any:
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}")))[0]

    def string(self) -> str:
        return str(self.take(self.unpack("Q")), "utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.numbers(kind, 1)[0]
        element, count = self.unpack("I"), self.unpack("Q")
        if element == _ARRAY:
            raise ValueError("it has an array of arrays")
        return self.numbers(element, count) if element in _NUMBERS else [self.value(element) for _ in range(count)]

    def numbers(self, kind: int, count: int) -> list[Any]:
        if kind not in _NUMBERS:
            raise ValueError(f"metadata value type {kind} is unknown")
        dtype = np.dtype(_NUMBERS[kind])
        return np.frombuffer(self.take(dtype.itemsize * count), dtype).tolist()


def read(file: Path) -> Gguf:
    """Open a GGUF file; its tensors stay on disk until they are used.

    Raises:
      ValueError: the file is truncated, damaged or not GGUF.
    """
    try:
        return _read(file)
    except (OSError, EOFError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file} was opened as GGUF, but it is truncated, damaged or not GGUF ({error}). Download it again."
        ) from error


def _read(file: Path) -> Gguf:
    if not file.stat().st_size:
        raise EOFError("it is empty")
    cursor = _Cursor(np.memmap(file, np.uint8, mode="r"))
    if bytes(cursor.take(4)) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = cursor.unpack("I")
    if version not in (2, 3):
        raise ValueError(f"version {version} is not 2 or 3, little-endian")
    num_tensors, num_keys = cursor.unpack("Q"), cursor.unpack("Q")
    metadata = {}
    for _ in range(num_keys):
        key, kind = cursor.string(), cursor.unpack("I")
        if key in metadata:
            raise ValueError(f"the key {key} stands twice")
        metadata[key] = cursor.value(kind)
    headers = []
    for _ in range(num_tensors):
        name, rank = cursor.string(), cursor.unpack("I")
        shape = tuple(cursor.unpack("Q") for _ in range(rank))[::-1]
        headers.append((name, shape, gguf.GGMLQuantizationType(cursor.unpack("I")), cursor.unpack("Q")))
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= _LARGEST_ALIGNMENT:
        raise ValueError(f"general.alignment is {alignment!r}")
    start = -(-cursor.position // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in headers:
        if name in tensors:
            raise ValueError(f"the tensor {name} stands twice")
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if not shape or shape[-1] % block:
            raise ValueError(f"tensor {name} has shape {shape}, whose rows are not whole blocks of {block} numbers")
        rows = (*shape[:-1], shape[-1] // block * block_bytes)
        cursor.position = start + offset
        tensors[name] = StoredTensor(shape, kind, np.frombuffer(cursor.take(math.prod(rows)), np.uint8).reshape(rows))
    return Gguf(file, metadata, tensors)
