"""The random numbers of training: one stream that sampling, validation and saving never disturb."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

#: every validation draws the same times and noise
VALIDATION_SEED = 20_220_523


def derived_seed(*parts: int) -> int:
    """Return one well-mixed seed of several numbers, such as a seed and a counter."""
    return int(np.random.SeedSequence([part % (1 << 64) for part in parts]).generate_state(1, np.uint64)[0]) >> 1


@contextmanager
def isolated(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Torch's global random state starts from ``seed`` inside the block and is as before after it.

    It serves code that takes no generator: dropout, the random flips of a data set.
    """
    on_cuda = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            torch.cuda.manual_seed(seed)
        yield


def draw_seed(generator: torch.Generator | None = None) -> int:
    """Return a new seed from a generator, by default torch's global one."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))


class TrainingRandomness:
    """Every random draw of training steps: times, noise, dropped captions, dropout.

    The stream belongs to the trainer, so that drawing samples in between changes nothing. Without a seed it starts
    from torch's global random state at the first step, and starts again when that has been seeded anew just before a
    step, so that ``torch.manual_seed`` means what its users expect.

    Args:
        seed: start of the stream, or None.
        device: of the training, whose global random state dropout draws from.
        broadcast: returns the main process's value on every process: all of them follow one stream, and each takes
            its rows of what is drawn for the global batch.
    """

    def __init__(self, seed: int | None, device: torch.device, broadcast: Callable[[int], int] | None = None) -> None:
        self.seed, self.device, self._broadcast = seed, device, broadcast
        self._seeds: torch.Generator | None = None
        self._draws = torch.Generator()
        if seed is not None:
            self._start(seed)

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainingRandomness:
        """Return another stream at the same place."""
        new = TrainingRandomness(self.seed, self.device, self._broadcast)
        new.load_state_dict(self.state_dict())
        return new

    def _start(self, seed: int) -> None:
        self._seeds = torch.Generator().manual_seed(derived_seed(seed, 0))

    def _follow_global(self) -> None:
        """Start (again) where the user seeded; drawing from the global state marks this seeding as used."""
        if self.seed is not None:
            return
        if self._broadcast is not None:  # a new seed in one process only must not separate it from the others
            if self._seeds is None:
                self._start(self._broadcast(draw_seed()))
        elif self._seeds is None or freshly_seeded():
            self._start(draw_seed())

    @contextmanager
    def step(self) -> Iterator[torch.Generator]:
        """Yield the generator for one training step; dropout inside the block follows the same stream."""
        self._follow_global()
        seed = draw_seed(self._seeds)
        with isolated(seed, self.device):
            yield self._draws.manual_seed(seed)

    @contextmanager
    def validation(self, *parts: int) -> Iterator[torch.Generator]:
        """Yield a generator that gives the same draws at each call with the same ``parts``."""
        seed = derived_seed(VALIDATION_SEED, *parts)
        with isolated(seed, self.device):
            yield torch.Generator().manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the stream."""
        return {} if self._seeds is None else {"seeds": self._seeds.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        if "seeds" not in state:
            return
        self._seeds = torch.Generator()
        self._seeds.set_state(state["seeds"])
        if freshly_seeded():
            draw_seed()


def freshly_seeded() -> bool:
    """Return whether nothing has been drawn from torch's global generator since it was seeded."""
    fresh = torch.Generator().manual_seed(torch.initial_seed())
    return torch.equal(torch.get_rng_state(), fresh.get_state())
