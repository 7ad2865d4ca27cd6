"""Make random generators from named coordinates; a resume does not need to restore any state of them."""

import hashlib
from numbers import Integral

import numpy as np


def _seed_sequence(coords: tuple[object, ...]) -> np.random.SeedSequence:
    # SeedSequence([1]) equals SeedSequence([1, 0]), and SeedSequence([2**32]) equals SeedSequence([0, 1]). A hash of
    # the spelled-out coordinates is different for all tuples; `hash()` would differ between processes.
    parts = []
    for coord in coords:
        if not isinstance(coord, (Integral, str)):
            raise ValueError(f"a random coordinate is an integer or a string, not {coord!r}")
        parts.append(coord if isinstance(coord, str) else int(coord))
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
    return np.random.SeedSequence(int.from_bytes(digest, "little"))


def rng_for(*coords: int | str) -> np.random.Generator:
    """Return a new generator that depends only on `coords`, for example `rng_for(seed, epoch, index, "temporal")`.

    Args:
        coords: integers (NumPy's too) and strings; their order and number matter.

    Raises:
        ValueError: a coordinate of another type.
    """
    return np.random.default_rng(_seed_sequence(coords))


def random_state_for(*coords: int | str) -> np.random.RandomState:
    """Return NumPy's legacy generator for `coords`; its draws reproduce the official mixup numbers."""
    return np.random.RandomState(np.random.MT19937(_seed_sequence(coords)))
