"""Train small classifiers on frozen features: many linear or attentive ones at once, and nearest neighbours."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from slowfast.utils.rng import rng_for
from slowfast.weights.tensors import load_tensors

TEMPERATURE = 0.07  # of the votes of neighbours (arXiv:2104.14294, appendix F.1)


class LinearHead(nn.Module):
    """A linear classifier of the mean token, standardized: (B, L, C), (B, L) -> (B, K).

    Mean and standard deviation (C,) are of the training set; they have the role of the batch normalization of
    arXiv:2111.06377, A.1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std.clamp(min=1e-6))
        self.classifier = nn.Linear(len(mean), classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        mean = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.classifier((mean - self.mean) / self.std)


class AttentiveHead(nn.Module):
    """A learned query that attends to the tokens, and a linear classifier: (B, L, C), (B, L) -> (B, K).

    It is the cross-attention of the attentive probes of arXiv:2404.08471 and arXiv:2506.09985, without an MLP. As there
    is one query, the products with the key and value matrices are taken out of the sum over tokens: the values equal
    those of ordinary attention, and the work per token falls from C * C to C per attention head.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.heads = math.gcd(channels, 8)
        self.query = nn.Parameter(torch.randn(self.heads, channels // self.heads))
        self.key = nn.Linear(channels, channels, bias=False)  # a bias does not change a softmax
        self.value = nn.Linear(channels, channels)
        self.projection = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        tokens = functional.layer_norm(tokens, tokens.shape[-1:])
        size = self.query.shape[1]
        key, value = (layer.weight.unflatten(0, (self.heads, size)) for layer in (self.key, self.value))
        scores = tokens @ torch.einsum("hd,hdc->ch", self.query, key) / size**0.5
        attention = scores.masked_fill(~mask[..., None], -math.inf).softmax(1)
        pooled = attention.transpose(1, 2) @ tokens
        values = torch.einsum("bhc,hdc->bhd", pooled, value).flatten(1) + self.value.bias
        return self.classifier(self.norm(self.projection(values)))


def load_head(path: str | Path) -> nn.Module:
    """Return the head in a file of slowfast-probe, a module from tokens (B, L, C) and their mask (B, L) to logits."""
    state = load_tensors(path)
    classes = len(state["classifier.weight"])
    if "query" in state:
        head: nn.Module = AttentiveHead(len(state["norm.weight"]), classes)
    else:
        head = LinearHead(state["mean"], state["std"], classes)
    head.load_state_dict(state)
    return head.eval()


@dataclass(frozen=True)
class Samples:
    """Features of N videos with their classes.

    Attributes:
        files: N tensors (L, C), or `.npy` files of arrays (L, C) or (C,), which are read when they are needed.
        labels: (N,).
    """

    files: Sequence[Tensor | Path]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def tokens(self, row: int) -> Tensor:
        """Return the tokens (L, C) of a video."""
        file = self.files[row]
        return torch.atleast_2d(file if isinstance(file, Tensor) else torch.from_numpy(np.load(file))).float()

    def batches(self, order: Sequence[int], size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield tokens (B, L, C) filled up with zeros, the mask (B, L) of the others, and labels (B,) of some rows."""
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            parts = [self.tokens(row) for row in rows]
            lengths = torch.tensor([len(part) for part in parts])
            tokens = nn.utils.rnn.pad_sequence(parts, batch_first=True)
            mask = torch.arange(tokens.shape[1]) < lengths[:, None]
            yield tokens.to(device), mask.to(device), self.labels[rows].to(device)

    def pooled(self) -> Samples:
        """Return the same videos with one token, their mean."""
        return Samples([*self.vectors()[:, None]], self.labels)

    def vectors(self) -> Tensor:
        """Return the mean tokens, (N, C)."""
        return torch.stack([self.tokens(row).mean(0) for row in range(len(self))])


def bank_logits(bank: Sequence[nn.Module], tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the logits (H, B, K) of H equal modules, computed as one."""
    stacked = {name: torch.stack([head.get_parameter(name) for head in bank]) for name, _ in bank[0].named_parameters()}
    # buffers are equal in all heads
    return vmap(lambda parameters: functional_call(bank[0], parameters, (tokens, mask)))(stacked)


def train_bank(
    make_head: Callable[[], nn.Module],
    samples: Samples,
    grid: Sequence[tuple[float, float]],
    *,
    epochs: int,
    batch: int,
    seed: int,
    device: torch.device,
) -> list[nn.Module]:
    """Train a head per pair of learning rate and weight decay, all at the same time, as in arXiv:2506.09985.

    The heads start from equal values, those of `make_head`, and see the same batches, which are functions of the seed.
    The optimizer is AdamW, and the learning rate falls to 0 by half a cosine.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng_for(seed, "probe head").integers(1 << 62)))
        first = make_head()
    bank = [copy.deepcopy(first).to(device) for _ in grid]
    groups = [
        {"params": [*head.parameters()], "lr": g[0], "weight_decay": g[1]} for head, g in zip(bank, grid, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * math.ceil(len(samples) / batch))
    for epoch in range(epochs):
        order = rng_for(seed, epoch, "probe order").permutation(len(samples)).tolist()
        for tokens, mask, labels in samples.batches(order, batch, device):
            logits = bank_logits(bank, tokens, mask)
            # the sum over heads of their mean losses, so that no head depends on the number of heads
            loss = functional.cross_entropy(logits.flatten(0, 1), labels.repeat(len(bank))) * len(bank)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return bank


@torch.no_grad()
def bank_scores(bank: Sequence[nn.Module], samples: Samples, batch: int, device: torch.device) -> Tensor:
    """Return the logits (H, N, K) of trained heads."""
    batches = samples.batches(range(len(samples)), batch, device)
    return torch.cat([bank_logits(bank, tokens, mask).cpu() for tokens, mask, _ in batches], 1)


def knn_scores(train: Samples, val: Samples, k: int, classes: int, batch: int = 256) -> Tensor:
    """Return the votes (N, K) of the k nearest training samples, or of all if fewer, for the mean tokens of `val`.

    The nearest samples have the largest cosines; each votes with exp(cosine / temperature) (arXiv:2104.14294,
    appendix F.1). The cosines of `batch` samples are in memory at once.
    """
    known, asked = (functional.normalize(samples.vectors(), dim=1) for samples in (train, val))
    votes = functional.one_hot(train.labels, classes).float()
    scores = []
    for part in asked.split(batch):
        near, rows = (part @ known.T).topk(min(k, len(known)))
        # relative to the nearest one, so that no vote is too large for its type
        weights = ((near - near[:, :1]) / TEMPERATURE).exp()
        scores.append((weights[..., None] * votes[rows]).sum(1))
    return torch.cat(scores)


def statistics(samples: Samples) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation (C,) of the mean tokens."""
    vectors = samples.vectors()
    return vectors.mean(0), vectors.std(0, correction=0)
