"""TensorBoard event files, written without TensorBoard or TensorFlow: scalars only.

A file is a sequence of records, each the length of its payload (u64), the masked CRC-32C of the length, the payload and
the payload's masked CRC-32C, little-endian. A payload is an `Event` protocol buffer
(https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto).
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from reval_jax import config as config_lib

DIRECTORY = "tensorboard"
"""Folder of a run directory: `tensorboard --logdir RUN/tensorboard`, or a folder of several runs."""


def sink(config: config_lib.Config, run_dir: Path) -> Callable[[int, Mapping[str, float | str]], None]:
    """A sink that writes every number of a round as a scalar, with the round as its step."""
    directory = run_dir / DIRECTORY
    directory.mkdir(exist_ok=True)
    # TensorBoard reads a directory's files in the order of their names.
    path = directory / f"events.out.tfevents.{time.time_ns():020d}.{os.getpid()}"
    is_new = True

    def write(round: int, values: Mapping[str, float | str]) -> None:
        nonlocal is_new
        events = [scalars_event(time.time(), round, values)]
        if is_new:
            # A resumed run plays the rounds after its last checkpoint again: START drops what TensorBoard has of them.
            events = [version_event(time.time()), start_event(time.time(), round), *events]
        with path.open("ab") as file:
            file.write(b"".join(record(event) for event in events))
        is_new = False

    return write


def version_event(seconds: float) -> bytes:
    """The first event of a file: the version of its format."""
    return _double(1, seconds) + _bytes(3, b"brain.Event:2")


def start_event(seconds: float, step: int) -> bytes:
    """A program starts at this step; TensorBoard drops earlier files' values from this step on."""
    session_log_start = _integer(1, 1)
    return _double(1, seconds) + _integer(2, step) + _bytes(7, session_log_start)


def scalars_event(seconds: float, step: int, values: Mapping[str, float | str]) -> bytes:
    """The numbers among the values, by name; text is left out."""
    summary = b"".join(
        _bytes(1, _bytes(1, name.encode(errors="backslashreplace")) + _float(2, value))
        for name, value in values.items()
        if not isinstance(value, str)
    )
    return _double(1, seconds) + _integer(2, step) + _bytes(5, summary)


def record(payload: bytes) -> bytes:
    """One record of an event file."""
    length = struct.pack("<Q", len(payload))
    return length + _masked_crc32c(length) + payload + _masked_crc32c(payload)


def crc32c(data: bytes) -> int:
    """CRC-32 with Castagnoli's polynomial (RFC 3720, B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _crc_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC_TABLE = [_crc_of_byte(byte) for byte in range(256)]


def _masked_crc32c(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


# Protocol buffer fields: a tag, number << 3 | wire type, then the value.


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)
