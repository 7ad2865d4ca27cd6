"""Turn the scores of an evaluation into probabilities."""

from __future__ import annotations

import torch
from torch import Tensor


def log_probabilities(scores: Tensor, probabilities: bool, summed: int) -> Tensor:
    """Return the logarithms of the probabilities of the classes, (N, K) float64.

    Args:
        scores: (N, K) sums or maxima over the views of a video.
        probabilities: whether they are of probabilities, not of logits.
        summed: views that a score is the sum of; 1 for maxima, which are normalized if they are of probabilities.
    """
    if not probabilities:
        return (scores.double() / summed).log_softmax(1)
    smallest = torch.finfo(torch.float32).tiny  # a probability may be too small for its type
    return (scores.double() / scores.double().sum(1, keepdim=True)).clamp(min=smallest).log()
