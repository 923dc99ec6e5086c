"""TensorBoard's event files, read back by a reader of their published format that shares no code with the writer."""

from __future__ import annotations

import math
import struct

import numpy as np

from reval_jax import config as config_lib
from reval_jax import tensorboard


def crc32c(data):
    """CRC-32C bit by bit, from the definition."""
    crc = 0xFFFFFFFF
    for byte in data:
        for bit in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if (crc ^ byte >> bit) & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32)


def payloads(data):
    """The records of a file; checks their checksums."""
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert data[8:12] == masked(data[:8])
        payload = data[12:][:length]
        assert data[12 + length :][:4] == masked(payload)
        yield payload
        data = data[16 + length :]


def varint(data):
    value = shift = 0
    while True:
        byte, data = data[0], data[1:]
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, data


def fields(data):
    """(number, value) of each field of a protocol buffer."""
    parsed = []
    while data:
        tag, data = varint(data)
        size = {1: 8, 5: 4}.get(tag & 7)
        if tag & 7 == 0:
            value, data = varint(data)
        else:
            if size is None:
                size, data = varint(data)
            value, data = data[:size], data[size:]
        parsed.append((tag >> 3, value))
    return parsed


def scalars(summary):
    values = [dict(fields(value)) for number, value in fields(summary) if number == 1]
    return {value[1].decode(): struct.unpack("<f", value[2])[0] for value in values}


def test_the_checksum_is_that_of_the_rfc():
    assert tensorboard.crc32c(b"123456789") == 0xE3069283
    assert tensorboard.crc32c(bytes(32)) == 0x8A9136AA
    data = np.random.default_rng(0).bytes(1000)
    assert tensorboard.crc32c(data) == crc32c(data)


def test_every_number_of_every_round_is_read_back(tmp_path):
    write = tensorboard.sink(config_lib.Config(), tmp_path)
    lines = [
        {"training/round": 0, "val-core/AIME24/acc/mean@4": 0.25},
        {"training/round": 300, "actor/loss": -1.5, "text": "left out", "reval/π": math.inf, "long/" + "x" * 200: 2.0},
    ]
    for line in lines:
        write(line["training/round"], line)
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert "tfevents" in file.name
    version, start, *events = (dict(fields(payload)) for payload in payloads(file.read_bytes()))
    assert version[3] == b"brain.Event:2"
    assert (start[2], fields(start[7])) == (0, [(1, 1)])
    numbers = [{name: value for name, value in line.items() if name != "text"} for line in lines]
    assert [(event[2], scalars(event[5])) for event in events] == [(0, numbers[0]), (300, numbers[1])]


def test_a_resumed_run_writes_a_file_that_sorts_behind_and_drops_the_rounds_it_plays_again(tmp_path):
    for first in (1, 3):
        write = tensorboard.sink(config_lib.Config(), tmp_path)
        for round in range(first, first + 3):
            write(round, {"actor/loss": float(first)})
    files = sorted((tmp_path / "tensorboard").iterdir())
    starts = [dict(fields(list(payloads(file.read_bytes()))[1]))[2] for file in files]
    assert starts == [1, 3]
