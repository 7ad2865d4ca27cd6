"""Define the results of a network for one video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Class:
    """A predicted class.

    Attributes:
        name: its name, or its number as text if the names are not known.
        index: its number, from 0.
        probability: from 0 to 1.
    """

    name: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The prediction for a video.

    Attributes:
        path: of the video.
        top: the most probable classes, the first one is the most probable.
        probabilities: (K,) of all classes.
        scores: (K,) sum or maximum over the views, as a test writes them to scores.npz.
        error: why the video cannot be decoded; then `top` and the arrays are empty.
    """

    path: str
    top: tuple[Class, ...]
    probabilities: np.ndarray
    scores: np.ndarray
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the path and the classes as plain values, for JSON."""
        if self.error:
            return {"path": self.path, "error": self.error}
        return {"path": self.path, "top": [vars(found) for found in self.top]}


@dataclass(frozen=True)
class Features:
    """The features of a video.

    Attributes:
        path: of the video.
        values: (C,) mean over the views; empty if the video cannot be decoded.
        error: why the video cannot be decoded.
    """

    path: str
    values: np.ndarray
    error: str = ""


def top_classes(probabilities: np.ndarray, names: list[str] | None, count: int) -> tuple[Class, ...]:
    """Return the `count` most probable classes of (K,) probabilities; of equal ones, the first."""
    order = np.argsort(-probabilities, kind="stable")[:count].tolist()
    return tuple(Class(names[k] if names else str(k), k, float(probabilities[k])) for k in order)
