"""Which windows come when (`Sampler`), and the batches of them (`Loader`)."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..batch import Batch, Labels
from .windows import Windows

_ROUNDS = 6
_BLOCK = 1 << 14
_GROUP, _GROUP_BYTES = 1024, 1 << 24  # windows gathered at once, where batches are smaller
_TABLE = 1 << 20  # up to this many windows an epoch is a stored permutation, beyond it a computed one


def _shuffled(count: int, seed: int, epoch: int, positions: np.ndarray) -> np.ndarray:
    """Values of a pseudo-random permutation of range(count) at some positions, without storing it.

    A Feistel cipher over the next power of four, walked until it falls into the range.
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.Generator(np.random.Philox(key=[seed, epoch])).integers(0, 2**63, _ROUNDS, dtype=np.uint64)

    def cipher(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for key in keys:
            mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        return (left << half) | right

    out = cipher(positions.astype(np.uint64))
    while (outside := out >= count).any():
        out[outside] = cipher(out[outside])
    return out.astype(np.int64)


class Sampler:
    """Window numbers, batch by batch, the same for the same seed however often it is stopped and resumed.

    mode "uniform": every window once per epoch; "balanced": series with equal chance, then a window of it; "weighted":
    series by `weights` (n,). `batch_size` is that of one rank; ranks take disjoint shares of the same global batches,
    so that W ranks see what one process sees at W times the batch size. Windows that do not divide among the ranks
    (fewer than `world_size`) wait for the next epoch.
    """

    def __init__(
        self,
        windows: Windows,
        batch_size: int,
        mode: str = "uniform",
        *,
        weights: Any = None,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if mode not in ("uniform", "balanced", "weighted"):
            raise ValueError(f"mode={mode!r} is none of 'uniform', 'balanced', 'weighted'")
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batch_size={batch_size}, rank={rank}, world_size={world_size} do not make a share")
        if (mode == "weighted") != (weights is not None):
            raise ValueError("weights are needed for mode='weighted', and for that alone")
        windows.require()
        self.windows, self.batch_size, self.mode, self.shuffle = windows, batch_size, mode, shuffle
        self.drop_last, self.seed, self.rank, self.world_size = drop_last, seed, rank, world_size
        self.epoch, self.batch = 0, 0
        self._cumulative = self._chances(weights)
        self._cache: tuple[Any, np.ndarray] | None = None

    def _chances(self, weights: Any) -> np.ndarray | None:
        if self.mode == "uniform":
            return None
        counts = self.windows.per_series
        chance = np.ones(len(counts)) if weights is None else np.asarray(weights, float)
        if chance.shape != counts.shape or not np.isfinite(chance).all() or (chance < 0).any():
            raise ValueError(f"weights must be {len(counts)} finite values >= 0, one per series")
        chance = np.where(counts > 0, chance, 0.0)
        if chance.sum() == 0:
            raise ValueError("weights are 0 for every series that has a window")
        return np.cumsum(chance) / chance.sum()

    def __len__(self) -> int:
        """Batches in an epoch, the same on every rank."""
        share = self.windows.count // self.world_size
        return share // self.batch_size if self.drop_last else -(-share // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        """The rest of the current epoch; afterwards the next one is current."""
        while self.batch < len(self):
            numbers = self.numbers(self.epoch, self.batch)
            self.batch += 1
            yield numbers
        self.epoch, self.batch = self.epoch + 1, 0

    def numbers(self, epoch: int, batch: int) -> Tensor:
        """(B,) the window numbers of this rank's batch."""
        share = self.windows.count // self.world_size
        size = min(self.batch_size, share - batch * self.batch_size)
        begin = batch * self.batch_size * self.world_size + self.rank * size
        return torch.from_numpy(self._draw(epoch, begin, begin + size))

    def _draw(self, epoch: int, begin: int, end: int) -> np.ndarray:
        if self.mode == "uniform" and not self.shuffle:
            return np.arange(begin, end)
        if self.mode == "uniform" and self.windows.count <= _TABLE:
            return self._block(epoch, 0)[begin:end]
        parts = []
        for block in range(begin // _BLOCK, (end - 1) // _BLOCK + 1):
            low = block * _BLOCK
            parts.append(self._block(epoch, block)[max(begin - low, 0) : end - low])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _block(self, epoch: int, block: int) -> np.ndarray:
        """Draws of one stretch of an epoch; the last one used is kept."""
        if self._cache is None or self._cache[0] != (epoch, block):
            self._cache = ((epoch, block), self._make_block(epoch, block))
        return self._cache[1]

    def _make_block(self, epoch: int, block: int) -> np.ndarray:
        count = self.windows.count
        if self._cumulative is None:
            if count <= _TABLE:
                return np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(count)
            low = block * _BLOCK
            return _shuffled(count, self.seed, epoch, np.arange(low, min(low + _BLOCK, count)))
        rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch], counter=[0, 0, 0, block]))
        series = np.searchsorted(self._cumulative, rng.random(_BLOCK), side="right")
        nth = (rng.random(_BLOCK) * self.windows.per_series[series]).astype(np.int64)
        device = self.windows.device
        return self.windows.numbers(torch.from_numpy(series).to(device), torch.from_numpy(nth).to(device)).cpu().numpy()

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands, and what must be equal for going on from there."""
        return {"epoch": self.epoch, "batch": self.batch, "of": self._identity()}

    def _identity(self) -> dict[str, Any]:
        names = ("batch_size", "mode", "shuffle", "seed", "world_size")
        return {"windows": self.windows.count, **{name: getattr(self, name) for name in names}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; ValueError where it belongs to other windows or settings."""
        for name, value in self._identity().items():
            if state["of"][name] != value:
                raise ValueError(
                    f"the sampler's state was saved with {name}={state['of'][name]!r}; it is {value!r} now"
                )
        self.epoch, self.batch = int(state["epoch"]), int(state["batch"])


class Loader:
    """Iterates (Batch, Labels): an epoch of the sampler per pass, or `steps` batches over as many epochs as needed.

    An epoch that is left early is over: the next pass is the next one. `prefetch` gathers are made ahead in a thread,
    and pinned; None: 2 where CUDA is used, none otherwise, as a gather takes less time than handing it over.
    `state_dict` counts the batches handed out: a pass after `load_state_dict` is the rest of that epoch, or `steps`
    batches from there on.
    """

    batch_sampler = None  # Lightning asks for it where there is a sampler

    def __init__(
        self,
        sampler: Sampler,
        steps: int | None = None,
        *,
        prefetch: int | None = None,
        pin_memory: bool | None = None,
    ):
        if steps is not None and steps < 1:
            raise ValueError(f"steps={steps} must be at least 1, or None for an epoch")
        cuda = torch.cuda.is_available() and sampler.windows.device.type == "cpu"
        self.sampler, self.steps = sampler, steps
        self.prefetch = (2 if cuda else 0) if prefetch is None else prefetch
        self.pin_memory = cuda if pin_memory is None else pin_memory
        self._left = False  # whether a pass has begun and not ended

    def __len__(self) -> int:
        return len(self.sampler) if self.steps is None else self.steps

    def set_epoch(self, epoch: int) -> None:
        """Start a given epoch from its first batch."""
        self.sampler.epoch, self.sampler.batch = epoch, 0
        self._left = False

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state after the batches handed out so far."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.sampler.load_state_dict(state)
        self._left = False

    def _plan(self) -> Iterator[tuple[int, int]]:
        """(epoch, batch) of what comes, from where the sampler stands, without moving it."""
        epoch, batch, per_epoch = self.sampler.epoch, self.sampler.batch, len(self.sampler)
        left = per_epoch - batch if self.steps is None else self.steps
        if per_epoch == 0:
            raise ValueError(
                f"batch_size={self.sampler.batch_size} on {self.sampler.world_size} ranks leaves no batch of the "
                f"{self.sampler.windows.count} windows; make it smaller or drop_last=False"
            )
        for _ in range(left):
            if batch == per_epoch:
                epoch, batch = epoch + 1, 0
            yield epoch, batch
            batch += 1

    def _groups(self) -> Iterator[list[tuple[int, int]]]:
        """Places of batches that are gathered together: small ones cost little more than one."""
        size = self.sampler.batch_size
        fit = _GROUP_BYTES // (self.sampler.windows.window_bytes * size)
        count = max(1, min(_GROUP // size, fit))
        plan = self._plan()
        while group := list(itertools.islice(plan, count)):
            yield group

    def _make(self, places: list[tuple[int, int]]) -> list[tuple[Batch, Labels]]:
        numbers = [self.sampler.numbers(*place) for place in places]
        windows = self.sampler.windows
        batch, labels = windows.gather(numbers[0] if len(numbers) == 1 else torch.cat(numbers), check=False)
        ends = list(itertools.accumulate(len(n) for n in numbers))
        spans = [slice(end - len(n), end) for n, end in zip(numbers, ends, strict=True)]
        made = [(batch, labels)] if len(spans) == 1 else [(batch[span], labels[span]) for span in spans]
        return [(b.pin_memory(), y.pin_memory()) for b, y in made] if self.pin_memory else made

    def __iter__(self) -> Iterator[tuple[Batch, Labels]]:
        if self._left and self.steps is None:
            self.set_epoch(self.sampler.epoch + 1)
        self._left = True
        groups = self._groups()
        source = _ahead(self._make, groups, self.prefetch) if self.prefetch else ((g, self._make(g)) for g in groups)
        for places, made in source:
            for (epoch, batch), pair in zip(places, made, strict=True):
                self.sampler.epoch, self.sampler.batch = epoch, batch + 1
                yield pair
        self._left = False
        if self.steps is None:
            self.sampler.epoch, self.sampler.batch = self.sampler.epoch + 1, 0


def _ahead(make: Any, plan: Iterator[Any], depth: int) -> Iterator[Any]:
    """(place, make(place)) for each place, made ahead in a thread that ends with the iterator; errors come through."""
    ready: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for place in plan:
                if not put((place, make(place))):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="xlstm-forecast-prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
