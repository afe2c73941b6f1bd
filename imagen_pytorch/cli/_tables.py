"""Text tables: columns of equal width, numbers to the right."""

from __future__ import annotations

from collections.abc import Sequence

#: between columns
_GAP = "  "


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> list[str]:
    """The lines of a table.

    Args:
        header: names of the columns.
        rows: their cells.
        left: numbers of the columns, from 0 on, that hold words and not numbers.
    """
    every = [header, *rows]
    widths = [max(len(row[column]) for row in every) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, range(len(row)), strict=True)
        return _GAP.join(cell.ljust(width) if at in left else cell.rjust(width) for cell, width, at in cells).rstrip()

    return [line(row) for row in every]
