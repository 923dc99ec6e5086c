"""A terminal: what a person sees of the text and the escape sequences that a program has written."""

from __future__ import annotations

import re

_PIECE = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|[\r\n]|[^\x1b\r\n]")


class Screen:
    """Rows of text with a cursor; rows never scroll away. As many terminals do, it wraps lines anew when it is resized."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._rows = [""]
        self._is_wrapped = [False]  # whether a row goes on in the next
        self._row = self._column = 0

    def write(self, text: str) -> None:
        """Obey a program's output."""
        for found in _PIECE.finditer(text):
            piece, number, command = found[0], found[1], found[2]
            if piece == "\r":
                self._column = 0
            elif piece == "\n":
                self._row, self._column = self._row + 1, 0
                self._reach()
            elif command is None:
                self._put(piece)
            elif command == "A":
                self._row = max(0, self._row - int(number or 1))
            elif command == "K":
                assert number == "2"
                self._rows[self._row], self._is_wrapped[self._row] = "", False
            else:
                assert command == "m", f"an escape sequence this terminal does not know: {piece!r}"

    def resize(self, width: int) -> None:
        """Wrap every line anew; the cursor stays behind the last character."""
        lines = self.lines()
        self.width, self._rows, self._is_wrapped, self._row, self._column = width, [""], [False], 0, 0
        self.write("\n".join(lines))

    def lines(self) -> list[str]:
        """The text, without wraps and without empty lines at its end."""
        lines, begun = [], ""
        for row, is_wrapped in zip(self._rows, self._is_wrapped, strict=True):
            begun += row
            if not is_wrapped:
                lines.append(begun)
                begun = ""
        lines.append(begun)
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def _put(self, character: str) -> None:
        if self._column == self.width:
            self._is_wrapped[self._row] = True
            self._row, self._column = self._row + 1, 0
            self._reach()
        row = self._rows[self._row].ljust(self._column)
        self._rows[self._row] = row[: self._column] + character + row[self._column + 1 :]
        self._column += 1

    def _reach(self) -> None:
        if self._row == len(self._rows):
            self._rows.append("")
            self._is_wrapped.append(False)
