"""Apply mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899) to the clips or images of a batch, as timm does."""

from dataclasses import dataclass

import numpy as np
import torch


def one_hot(labels: torch.Tensor, num_classes: int, smoothing: float = 0.0) -> torch.Tensor:
    """Turn labels (B,) into smoothed targets (B, K): `smoothing / K` everywhere, plus `1 - smoothing` at the label.

    Labels (B, K), which are 1 for each class of a sample and 0 for others, are smoothed in the same way.
    """
    off = smoothing / num_classes
    if labels.ndim == 2:
        return labels * (1.0 - smoothing) + off
    targets = torch.full((len(labels), num_classes), off, device=labels.device)
    return targets.scatter_(1, labels.long().view(-1, 1), 1.0 - smoothing + off)


def mixup_target(labels: torch.Tensor, num_classes: int, lam: float, smoothing: float = 0.0) -> torch.Tensor:
    """Return targets (B, K): share `lam` of the sample's own labels, the rest of those in the flipped batch."""
    target = one_hot(labels, num_classes, smoothing)
    return target.flip(0).lerp_(target, lam)


@dataclass(frozen=True)
class MixUp:
    """Mix every clip with its partner in the flipped batch: the first with the last, and so on.

    Either the clips are blended (mixup), or each clip gets a box of its partner in all frames (CutMix). The share is
    drawn from Beta(alpha, alpha), once per batch.

    Args:
        alpha: parameter of the Beta distribution of mixup; 0 for CutMix only. One of the two must be above 0.
        cutmix_alpha: parameter of the Beta distribution of CutMix; 0 for mixup only.
        prob: probability that a batch is mixed.
        switch_prob: probability of CutMix if both are on.
        smoothing: label smoothing.
        num_classes: K, number of classes.
    """

    alpha: float
    cutmix_alpha: float
    prob: float
    switch_prob: float
    smoothing: float
    num_classes: int

    def __call__(
        self, video: torch.Tensor, label: torch.Tensor, rng: np.random.RandomState
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix one batch.

        Args:
            video: (B, C, T, H, W), or images (B, C, H, W), floating point and normalized; it is not changed.
            label: (B,) classes, or (B, K) with 1 for each class of a sample.
            rng: source of the draws; each rank has its own.

        Returns:
            The mixed video of the same shape, and targets (B, K).
        """
        assert video.is_floating_point(), "mixing comes after the normalization"
        lam, cut = self._draw(rng)
        if lam == 1.0:
            mixed = video
        elif cut:
            height, width = video.shape[-2:]
            y0, y1, x0, x1 = _box(height, width, lam, rng)
            mixed = video.clone()
            mixed[..., y0:y1, x0:x1] = video[..., y0:y1, x0:x1].flip(0)
            lam = 1.0 - (y1 - y0) * (x1 - x0) / (height * width)  # the border may have cut the box
        else:
            mixed = video.flip(0).lerp_(video, lam)
        return mixed, mixup_target(label, self.num_classes, lam, self.smoothing)

    def _draw(self, rng: np.random.RandomState) -> tuple[float, bool]:
        if rng.rand() >= self.prob:
            return 1.0, False
        cut = self.cutmix_alpha > 0 and (self.alpha <= 0 or rng.rand() < self.switch_prob)
        alpha = self.cutmix_alpha if cut else self.alpha
        return float(rng.beta(alpha, alpha)), cut


def _box(height: int, width: int, lam: float, rng: np.random.RandomState) -> tuple[int, int, int, int]:
    """Return (y0, y1, x0, x1) of a box of area share `1 - lam` with a random centre, cut at the border."""
    side = np.sqrt(1.0 - lam)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    y, x = rng.randint(height), rng.randint(width)
    return max(y - half_height, 0), min(y + half_height, height), max(x - half_width, 0), min(x + half_width, width)
