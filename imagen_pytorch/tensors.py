"""Small tensor tools: random draws, broadcasting, masks.

Shape legend of the package: ``b`` batch, ``c`` channels, ``h w`` height and width, ``f`` frames, ``*space`` either
``h w`` or ``f h w``, ``n`` text tokens, ``d`` features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .renamed import renamed

Value = TypeVar("Value")


@dataclass(frozen=True)
class BatchShard:
    """The rows of a global batch that one rank has, and a generator for them.

    Ranks that divide a batch draw together what one process would draw for all of it. Every draw takes one seed from
    the generator, and each block of rows of the global batch has a generator that starts from this seed plus the number
    of the block. So a rank draws its own rows, and those that share a block with them.

    Args:
        first: index of the first row in the global batch.
        count: number of rows; one that counts nothing if the batch has none for this rank.
        total: rows of the global batch.
        weight: weight of the rank's mean in the mean over ranks: 1 if all have as many rows, 0 if it has none.
        largest: number of rows of the rank that has the most.
        generator: in the same state on every rank; for draws that the batch shares, and for the seeds of all others. On
            the CPU no draw waits for a GPU.
    """

    first: int
    count: int
    total: int
    weight: float = 1.0
    largest: int = 0
    generator: torch.Generator | None = None

    @classmethod
    def of(cls, counts: Sequence[int], rank: int) -> BatchShard:
        """Return the rows of a rank in a batch of which each rank has this number of rows, in their order."""
        total, own = sum(counts), counts[rank]
        weight = len(counts) * own / total if own else 0.0
        return cls(sum(counts[:rank]) if own else 0, own or 1, total, weight, max(counts))

    def draw(
        self, sample: Callable[..., Tensor], shape: Sequence[int], device: torch.device | str | None, dtype: torch.dtype
    ) -> Tensor:
        """Draw the rows of this rank on a device.

        Args:
            sample: ``torch.randn`` or ``torch.rand``.
            shape: of the rows of this rank together.
            device: by default that of the generator.

        Raises:
            ValueError: another number of rows, or the shard has no generator.
        """
        if self.count != shape[0]:
            raise ValueError(f"a share of {self.count} rows cannot serve a batch of {shape[0]}")
        if self.generator is None:
            raise ValueError("this share has no generator to draw from")
        seed = int(torch.randint(2**62, (), generator=self.generator, device=self.generator.device))
        block = torch.Generator(self.generator.device if device is None else device)
        # a block takes about as long as its seed: on a CPU a few rows of scalars, on a GPU also some images
        rows = max(1, (2**10 if block.device.type == "cpu" else 2**20) // max(1, math.prod(shape[1:])))
        numbers = range(self.first // rows, (self.first + self.count - 1) // rows + 1)
        size, options = (rows, *shape[1:]), {"device": block.device, "dtype": dtype}
        drawn = [sample(size, generator=block.manual_seed(seed + number), **options) for number in numbers]
        skipped = self.first - rows * numbers.start
        return torch.cat(drawn)[skipped : skipped + self.count]


#: One generator for a batch, one per item (a draw then never depends on other items), one for some rows of a larger
#: batch, or torch's own.
Generators = torch.Generator | Sequence[torch.Generator] | BatchShard | None


def check_generators(given: Any) -> None:
    """Check that random numbers can be drawn from the argument.

    Raises:
        TypeError: neither a generator, nor one for each image, nor a function from a tensor to noise, nor None.
    """
    several = isinstance(given, list | tuple)
    if not several and isinstance(given, BatchShard | None):
        return
    sources = given if several else [given]
    if not sources or not all(isinstance(each, torch.Generator) or callable(each) for each in sources):
        raise TypeError(f"generator must be a torch.Generator, or one per image; got {given!r}")


def once(generator: Generators) -> torch.Generator | None:
    """Return the generator of draws that a batch shares."""
    if isinstance(generator, BatchShard):
        return generator.generator
    if isinstance(generator, SeededGenerators):
        generator.undo()
    return generator[0] if isinstance(generator, list | tuple) else generator


def seeds_of(seed: Any, batch: int) -> list[int]:
    """Return one seed per batch item: ``seed + index`` for one number, else as given.

    Args:
        seed: an integer, or one per item; also as tensors, NumPy numbers or floats without a fraction.

    Raises:
        TypeError: a value of another type.
        ValueError: not an integer, a seed that torch does not accept, or another number of seeds than ``batch``.
    """
    given = seed.tolist() if hasattr(seed, "tolist") else seed
    many = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    seeds = [_whole_seed(item) for item in given] if many else [_whole_seed(given) + index for index in range(batch)]
    if len(seeds) != batch:
        raise ValueError(f"{batch} images need one seed or {batch} seeds, got {len(seeds)}")
    if wrong := [item for item in seeds if not -(2**63) <= item < 2**64]:
        raise ValueError(f"a seed lies between -2**63 and 2**64 - 1 (image i gets seed + i), got {wrong[0]}")
    return seeds


def _whole_seed(seed: Any) -> int:
    number = seed.item() if isinstance(seed, Tensor) and seed.numel() == 1 else seed
    if not isinstance(number, Real):
        raise TypeError(f"a seed is a whole number, or one for each image; got {type(seed).__name__}")
    if number != number or number in (math.inf, -math.inf) or int(number) != number:
        raise ValueError(f"a seed is a whole number, got {number}")
    return int(number)


class SeededGenerators(list[torch.Generator]):
    """One generator per batch item. For a GPU the next draw is made in a thread, while it computes.

    This begins when the same draw is asked for twice in a row. If then another one is asked for, the generators are set
    back, so that the numbers are those of a plain list.
    """

    def __init__(self, generators: Iterable[torch.Generator]) -> None:
        super().__init__(generators)
        self._pool = ThreadPoolExecutor(1)
        self._last: tuple[Any, ...] | None = None
        self._next: tuple[list[Tensor], Future[Tensor]] | None = None

    def _rows(self, sample: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.stack([sample(shape, generator=item, device=item.device, dtype=dtype) for item in self])

    def undo(self) -> None:
        """Set the generators back to where they are without the draw in the thread."""
        if self._next is not None:
            states, drawn = self._next
            drawn.result()
            for item, state in zip(self, states, strict=True):
                item.set_state(state)
            self._next = None

    def draw(self, sample: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype, ahead: bool) -> Tensor:
        """Draw a row per item, where its generator is.

        Args:
            sample: ``torch.randn`` or ``torch.rand``.
            shape: of a row.
            ahead: whether the next draw may be made in a thread.
        """
        request = sample, shape, dtype
        if self._next is not None and request == self._last:
            found, self._next = self._next[1].result(), None
        else:
            self.undo()
            found = self._rows(*request)
        if ahead and request == self._last:
            self._next = [item.get_state() for item in self], self._pool.submit(self._rows, *request)
        self._last = request
        return found


def seeded(seed: Any, batch: int) -> SeededGenerators:
    """Return one CPU generator per batch item. Arguments and errors as `seeds_of`."""
    return SeededGenerators(torch.Generator().manual_seed(item) for item in seeds_of(seed, batch))


def sent(value: Tensor, device: torch.device | str | None) -> Tensor:
    """Move a tensor to a device. The host does not wait for a GPU to receive it."""
    if value.device.type != "cpu" or device is None or torch.device(device).type != "cuda":
        return value.to(device)
    return value.contiguous().pin_memory().to(device, non_blocking=True)


def _draw(
    sample: Any, shape: Sequence[int], generator: Generators, device: torch.device | str | None, dtype: torch.dtype
) -> Tensor:
    if generator is None:
        return sample(tuple(shape), device=device, dtype=dtype)
    if isinstance(generator, torch.Generator):
        return sent(sample(tuple(shape), generator=generator, device=generator.device, dtype=dtype), device)
    if isinstance(generator, BatchShard):
        return generator.draw(sample, shape, device, dtype)
    if len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators cannot serve a batch of {shape[0]}; give one per item")
    items = generator if isinstance(generator, SeededGenerators) else SeededGenerators(generator)
    ahead = device is not None and torch.device(device).type not in ("cpu", "meta")
    return sent(items.draw(sample, tuple(shape[1:]), dtype, ahead), device)


def randn(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw standard normal noise of any shape whose first axis is the batch, on the generator's own device."""
    return _draw(torch.randn, shape, generator, device, dtype)


def rand(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw uniform numbers in [0, 1) of any shape whose first axis is the batch."""
    return _draw(torch.rand, shape, generator, device, dtype)


def randn_like(x: Tensor, generator: Generators = None) -> Tensor:
    """Draw standard normal noise of the shape, device and precision of ``x``."""
    return randn(x.shape, generator, x.device, x.dtype)


def bernoulli(
    probability: float, batch: int, generator: Generators = None, device: torch.device | str | None = None
) -> Bool[Tensor, " b"]:
    """Draw one independent boolean per batch item, true with the given probability. 0 and 1 are exact."""
    return rand((batch,), generator, device) < probability


def expand_to(value: Tensor, x: Tensor) -> Tensor:
    """Append unit axes to a per-item value ``(b,)`` so that it broadcasts over ``x``. A scalar stays as it is."""
    return value if value.ndim == 0 else value.reshape(*value.shape, *(1,) * (x.ndim - value.ndim))


def widest(x: Float[Tensor, "*shape"], device: torch.device | str | None = None) -> Float[Tensor, "*shape"]:
    """Convert to double precision, unless ``x`` or the target ``device`` is Apple's, which has none."""
    kinds = {x.device.type} if device is None else {x.device.type, torch.device(device).type}
    return x if "mps" in kinds else x.double()


def quantile(x: Float[Tensor, "b *space"], q: float) -> Float[Tensor, " b"]:
    """Return the q-quantile of each batch item, linearly interpolated as ``torch.quantile`` does.

    It takes any number of elements and any floating precision. ``torch.quantile`` refuses more than 2**24 values and
    half precision.
    """
    flat = x.flatten(1).float() if x.dtype in (torch.float16, torch.bfloat16) else x.flatten(1)
    count = flat.shape[1]
    position = q * (count - 1)
    low = int(position)
    # two neighbours in rank, selected from the nearer end; where values fall evenly, `kthvalue` takes quadratic time
    upper = 2 * low >= count
    end = flat.topk(count - low if upper else min(low + 2, count), dim=1, largest=upper, sorted=False).values
    pair = end.topk(min(2, end.shape[1]), dim=1, largest=not upper).values
    below, above = pair.amin(1), pair.amax(1)
    return (below if position == low else torch.lerp(below, above, position - low)).to(x.dtype)


def per_stage(value: Value | Sequence[Value], count: int, name: str) -> tuple[Value, ...]:
    """Broadcast a per-U-Net argument. A list or tuple must have ``count`` entries, anything else is repeated.

    Raises:
        ValueError: a list or tuple of another length; the message names the argument.
    """
    if not isinstance(value, list | tuple):
        return (value,) * count
    if len(value) != count:
        raise ValueError(f"{name} needs one value, or one for each of the {count} U-Nets; got {len(value)}: {value!r}")
    return tuple(value)


def token_mask(mask: Tensor, name: str) -> Bool[Tensor, "*shape"]:
    """Return a mask of tokens as booleans: true, 1 and 1.0 are valid tokens, false, 0 and 0.0 are padding.

    Raises:
        ValueError: other numbers; the message names the argument. In masks that attention layers of other libraries add
            to logits, of 0 and -inf, 0 is the valid token.
    """
    fits = (
        "true (1) where a token counts and false (0) at padding, got other numbers; of a mask that is added to logits, "
        "with 0 where a token counts and -inf at padding, pass mask == 0"
    )
    return truth_of(mask, name, fits)


def truth_of(mask: Tensor, name: str, fits: str) -> Bool[Tensor, "*shape"]:
    """Convert the numbers 0 and 1 to booleans.

    Integers on an accelerator are not read, because every training step would wait.

    Args:
        fits: description of valid values for the error.

    Raises:
        ValueError: other numbers; the message names the argument.
    """
    unseen = mask.is_meta or (mask.device.type != "cpu" and not mask.is_floating_point())
    if mask.dtype == torch.bool or unseen or torch.compiler.is_compiling():
        return mask.bool()
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"{name} must be {fits}")
    return mask.bool()


__getattr__ = renamed(__name__, {"Share": "BatchShard"})
