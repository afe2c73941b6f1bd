"""A test of each file of the package as one test: thousands of them would cost more than what they look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "imagen_pytorch"


def each_file(files: Iterable[Path]) -> Callable[[Callable[[Path], None]], Callable[[], None]]:
    """Run a test for every file, and name all files that fail it."""
    chosen = list(files)
    assert chosen

    def decorate(test: Callable[[Path], None]) -> Callable[[], None]:
        def every_file() -> None:
            wrong = []
            for path in chosen:
                try:
                    test(path)
                except AssertionError as error:
                    wrong.append(f"{path.relative_to(PACKAGE)}: {error}")
            assert not wrong, "\n".join(wrong)

        every_file.__name__, every_file.__doc__ = test.__name__, test.__doc__
        return every_file

    return decorate
