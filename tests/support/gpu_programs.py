"""Reads the text of a program compiled for GPUs: the kernels it launches, its loops, and the arrays it keeps in memory.

program = gpu_programs.read(compiled.as_text())
token = program.loops()[0]  # the longest: the decode window's loop over tokens
assert token.kernels <= 16 * layers + 40
assert not token.unknown_loops_inside
assert not program.square_arrays(8192)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# Instructions that launch nothing: names for memory that exists already.
FREE = frozenset(
    [
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "opt-barrier",
        "partition-id",
        "replica-id",
        "domain",
    ]
)
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{(?:, .*)?$")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+(?:e\d+m\d+(?:fn|fnuz|b\d+)*)?)\[([\d,]*)\]")


class Array(NamedTuple):
    """The result of an instruction, or a part of it."""

    dtype: str  # as XLA writes it: bf16, f32, u16
    shape: tuple[int, ...]
    line: str  # the instruction

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Instruction(NamedTuple):
    """One instruction of a computation."""

    opcode: str
    line: str
    type: str  # of its result

    def called(self, *roles: str) -> list[str]:
        """The computations that it calls in these roles, for example body."""
        names: list[str] = []
        for role in roles:
            if match := re.search(rf"\b{role}=(?:\{{([^}}]*)\}}|(%?[\w.\-]+))", self.line):
                names += [name.strip().lstrip("%") for name in (match[1] or match[2]).split(",")]
        return names

    @property
    def trips(self) -> int | None:
        """Iterations of a loop; None if the host has to wait for its condition."""
        match = re.search(r'known_trip_count"?:?\s*=?\s*\{?\s*"?n"?[^0-9]{1,4}(\d+)', self.line)
        return int(match[1]) if match else None

    def arrays(self) -> list[Array]:
        """The arrays of its result."""
        return [
            Array(dtype, tuple(int(size) for size in sizes.split(",") if size), self.line)
            for dtype, sizes in _SHAPE.findall(self.type)
        ]


class Loop(NamedTuple):
    """A loop of a program."""

    body: str  # the name of its computation
    trips: int | None  # None if unknown when the program is compiled
    kernels: int  # launched by an iteration; loops inside of unknown length count once
    unknown_loops_inside: tuple[str, ...]  # bodies of the loops inside it, at any depth, whose length is unknown
    line: str


class Program(NamedTuple):
    """A compiled program by computation; the entry is ENTRY."""

    computations: dict[str, list[Instruction]]

    def kernels(self, computation: str = "ENTRY", *, unknown_trips: int = 1) -> int:
        """Kernels that a call launches: one for each instruction that computes, moves or communicates.

        A fusion is one kernel, whatever it contains; so is a call of a library, which may be several. Of the branches of a
        conditional the one with most kernels counts. A loop of unknown length counts as `unknown_trips` iterations, each with its
        condition.
        """
        count = 0
        for each in self.computations[computation]:
            if each.opcode in FREE or each.opcode.endswith("-done") or each.opcode == "async-update":
                continue
            inner = {
                name: self.kernels(name, unknown_trips=unknown_trips)
                for name in each.called(
                    "body", "condition", "branch_computations", "true_computation", "false_computation"
                )
            }
            if each.opcode == "while":
                [body], [condition] = each.called("body"), each.called("condition")
                trips = each.trips
                count += trips * inner[body] if trips is not None else unknown_trips * (inner[body] + inner[condition])
            elif each.opcode == "conditional":
                count += max(inner.values())
            elif each.opcode == "call":
                count += sum(self.kernels(name, unknown_trips=unknown_trips) for name in each.called("to_apply"))
            else:
                count += 1
        return count

    def loops(self) -> list[Loop]:
        """All loops; those whose iterations launch most kernels first."""
        found = [
            Loop(
                body=body,
                trips=instruction.trips,
                kernels=self.kernels(body),
                unknown_loops_inside=tuple(
                    each.called("body")[0] for each in self._loops_inside(body) if each.trips is None
                ),
                line=instruction.line,
            )
            for instruction in self._loops_inside("ENTRY")
            for body in instruction.called("body")
        ]
        return sorted(found, key=lambda loop: -loop.kernels)

    def _loops_inside(self, computation: str) -> Iterator[Instruction]:
        """The loops of a computation and of all it runs."""
        for each in self.computations[computation]:
            if each.opcode == "while":
                yield each
            if each.opcode in ("while", "conditional", "call"):
                roles = ("body", "branch_computations", "true_computation", "false_computation", "to_apply")
                for name in each.called(*roles):
                    yield from self._loops_inside(name)

    def host_waits(self) -> int:
        """Loops of unknown length and conditionals, wherever they run: the host waits for each one's condition."""
        inside = [each for name in self._running("ENTRY") for each in self.computations[name]]
        return sum(each.opcode == "conditional" or (each.opcode == "while" and each.trips is None) for each in inside)

    def _running(self, computation: str) -> Iterator[str]:
        """Computations whose instructions are launched one by one: the entry, bodies of loops, branches; not fusions."""
        yield computation
        for each in self.computations[computation]:
            if each.opcode in ("while", "conditional", "call", "async-start"):
                roles = (
                    "body",
                    "condition",
                    "branch_computations",
                    "true_computation",
                    "false_computation",
                    "to_apply",
                )
                for name in each.called(*roles, *(["calls"] if each.opcode == "async-start" else [])):
                    yield from self._running(name)

    def arrays(self) -> list[Array]:
        """The arrays that lie in memory: results of instructions outside of fusions. Those of a tuple count one by one."""
        names = dict.fromkeys(self._running("ENTRY"))
        return [array for name in names for each in self.computations[name] for array in each.arrays()]

    def square_arrays(self, length: int) -> list[Array]:
        """The arrays in memory with at least two axes of at least `length`, as a [T, T] has."""
        return [array for array in self.arrays() if sum(size >= length for size in array.shape) >= 2]

    def arrays_of(self, dtype: str) -> list[Array]:
        """The arrays in memory of this dtype, as XLA writes it."""
        return [array for array in self.arrays() if array.dtype == dtype]


def read(text: str) -> Program:
    """The program of a `compiled.as_text()`.

    Raises:
      ValueError: there is no entry, or an instruction that cannot be read.
    """
    computations: dict[str, list[Instruction]] = {}
    current: list[Instruction] | None = None
    for line in text.splitlines():
        if line.startswith(" ") and " = " in line and current is not None:
            current.append(_instruction(line.strip()))
        elif line and not line.startswith(" ") and (header := _HEADER.match(line)):
            current = computations.setdefault("ENTRY" if header[1] else header[2], [])
        elif line.startswith("}"):
            current = None
    if "ENTRY" not in computations:
        raise ValueError("the text has no entry computation: it is not that of a compiled program")
    return Program(computations)


def _instruction(line: str) -> Instruction:
    result = line.split(" = ", 1)[1]
    end = _closing(result) + 1 if result.startswith("(") else result.index(" ")
    type_, rest = result[:end], result[end:]
    opcode = re.match(r"\s*([a-z][a-z0-9\-]*)\(", rest)
    if opcode is None:
        raise ValueError(f"the instruction cannot be read: {line[:200]}")
    return Instruction(opcode[1], line, type_)


def _closing(text: str) -> int:
    """Where the parenthesis closes that opens the text, as that of a tuple's type."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return place
    raise ValueError(f"the parenthesis does not close: {text[:200]}")
