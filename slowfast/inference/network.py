"""Define a trained network that predicts and computes features as a test of it does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from slowfast.datasets.build import build_dataset, channel_order
from slowfast.datasets.dataset import Prepared, VideoEvalDataset
from slowfast.datasets.lists import Sample, VideoList
from slowfast.datasets.reader import MediaError
from slowfast.datasets.rows import UNKNOWN
from slowfast.engine.evaluate import Evaluation, NothingDecodedError, ViewEnsemble, evaluate
from slowfast.engine.setup import Inference, clip_mover, inference_dtype, listed, make_loader
from slowfast.engine.test import clips_at_once, score
from slowfast.inference.layers import POOLED, LayerFeatures
from slowfast.inference.results import Class, Features, Prediction, top_classes
from slowfast.models.build import model_row, sums_softmax
from slowfast.utils.processes import usable_cores

Path = str | os.PathLike[str]


class Network:
    """A trained network with its class names, transform, sampling and views; see `slowfast.load`.

    Its methods are `predict` (paths -> `Prediction`), `features` (paths -> vectors of a layer), `transform` (decoded
    frames -> clips on the device), `frame_indices` (length of a video -> frames of its views), `layer` (name ->
    module from clips to vectors), and `save_pretrained` and `push_to_hub` (shared folders).

    Args:
        model: the network on the device, in evaluation mode.
        cfg: the configuration of its training and test.
        class_names: in the order of the outputs; None if they are not known.
        device: of the model.
        weights: path or address of its weights.
    """

    def __init__(
        self, model: nn.Module, cfg: CfgNode, class_names: Sequence[str] | None, device: torch.device, weights: str
    ) -> None:
        self.model, self.cfg, self.device, self.weights = model, cfg, device, weights
        self.class_names = list(class_names) if class_names else None
        self.is_image = model_row(cfg).is_image
        self.dataset = build_dataset(cfg, "test", VideoList([], []))  # of no video: the transform and the sampling
        self._to_device = clip_mover(cfg, device)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy what the others follow from, for example for the workers of a loader."""
        return type(self), (self.model, self.cfg, self.class_names, self.device, self.weights)

    @property
    def num_views(self) -> int:
        """The number of clips per video: temporal views x crops."""
        return 1 if self.is_image else self.cfg.TEST.NUM_ENSEMBLE_VIEWS * self.cfg.TEST.NUM_SPATIAL_CROPS

    @property
    def channel_order(self) -> str:
        """The order of the channels of a clip, "RGB" or "BGR"."""
        return channel_order(self.cfg, "test")

    @property
    def views_of_video(self) -> VideoEvalDataset:
        """The sampling and the transform of a test of videos.

        Raises:
            ValueError: the network takes images.
        """
        if not isinstance(self.dataset, VideoEvalDataset):
            raise ValueError("this network takes images, not clips: predict image files, without windows and pictures")
        return self.dataset

    # overloads overlap because a str is a sequence of strings too
    @overload
    def predict(self, paths: Path, top: int = 5) -> Prediction: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def predict(self, paths: Sequence[Path], top: int = 5) -> list[Prediction]: ...
    def predict(self, paths: Path | Sequence[Path], top: int = 5) -> Prediction | list[Prediction]:
        """Return the classes of videos; their scores are those of a test of the same list.

        Args:
            paths: a video or folder of frames, which gives one prediction, or a list of them, which gives a list.
            top: number of classes in `Prediction.top`.

        Raises:
            MediaError: a single video cannot be decoded. In a list, `Prediction.error` contains the reason.
        """
        outcomes = self._evaluate(paths, lambda loader: score(self.cfg, self.model, loader, self.device, "predict"))
        found = [Prediction(path, *self._named(scores, top), error) for path, scores, error in outcomes]
        return _one(found) if isinstance(paths, (str, os.PathLike)) else found

    @overload
    def features(self, paths: Path, layer: str | LayerFeatures = POOLED) -> Features: ...  # pyright: ignore
    @overload
    def features(self, paths: Sequence[Path], layer: str | LayerFeatures = POOLED) -> list[Features]: ...
    def features(self, paths: Path | Sequence[Path], layer: str | LayerFeatures = POOLED) -> Features | list[Features]:
        """Return a vector per video: the mean of a layer's output over positions and views.

        Args:
            paths: as for `predict`.
            layer: name of a layer, see `torch.nn.Module.named_modules`; "pooled" is the input of the classifier. For
                many calls, pass what `layer` returns: its dimensions are found in the first one.

        Raises:
            MediaError: a single video cannot be decoded. In a list, `Features.error` contains the reason.
            ValueError: the network does not have the layer, or the layer returns tokens.
        """
        module = self.layer(layer) if isinstance(layer, str) else layer
        if module.tokens or module.model is not self.model:
            raise ValueError("the layer is of another network, or returns tokens: use net.layer(NAME)")
        model, clips = self.as_tested(module), clips_at_once(self.cfg, local_world_size=1)

        def run(loader: Any) -> Evaluation:
            ensemble = ViewEnsemble("sum", softmax=False, videos=len(listed(loader)))
            return evaluate(model, loader, self._to_device, self.device, ensemble, clips, "features")

        outcomes = self._evaluate(paths, run)
        found = [Features(path, sums / self.num_views, error) for path, sums, error in outcomes]
        return _one(found) if isinstance(paths, (str, os.PathLike)) else found

    def layer(self, name: str = POOLED, tokens: bool = False) -> LayerFeatures:
        """Return a module from clips (B, C, T, H, W) to the mean output (B, C') of a layer; it shares the weights.

        Args:
            name: of the layer.
            tokens: return the output at all positions, (B, L, C'), not the mean.

        Raises:
            ValueError: the network does not have the layer.
        """
        return LayerFeatures(self.model, name, tokens)

    def as_tested(self, module: nn.Module) -> nn.Module:
        """Return a module from clips to vectors that computes in the number format of a test."""
        return Inference(module, inference_dtype(self.cfg, self.device), 1, compiled=False)

    def save_pretrained(self, folder: Path, licence: str | None = None) -> None:
        """Write config.yaml, model.safetensors and a model card (README.md), which `slowfast.load` reads.

        The card contains the accuracy of the test in OUTPUT_DIR, if that is a test of these weights. A card that exists
        is kept.

        Args:
            folder: to write into.
            licence: identifier of the Hub, for example "apache-2.0"; None leaves a line to fill in.
        """
        from slowfast.inference.share import save_folder  # which imports this module

        save_folder(self, folder, licence=licence)

    def push_to_hub(
        self, name: str, folder: Path | None = None, licence: str | None = None, private: bool = False
    ) -> str:
        """Upload the network to the Hugging Face Hub; return its address, hf://OWNER/NAME.

        Args:
            name: OWNER/NAME; the repository is made if there is none.
            folder: of `save_pretrained`, for example with a card that was edited; None makes one.
            licence: as for `save_pretrained`.
            private: whether a new repository is private.

        Raises:
            ValueError: the name is not OWNER/NAME, or the upload fails.
        """
        from slowfast.inference.share import upload

        return upload(self, name, folder, licence, private)

    def clips(self, path: Path) -> Tensor:
        """Return the clips (B, C, T, H, W) of a video in a test, normalized and on the device.

        Raises:
            MediaError: the video cannot be decoded.
        """
        return self.transform(self.views_of_video.reader.read(Sample(os.fspath(path), UNKNOWN), self.frame_indices))

    def transform(self, frames: np.ndarray) -> Tensor:
        """Return the clips (B, C, T, H, W) that the network takes, normalized and on its device.

        Args:
            frames: (V * T, H, W, C) uint8 of V temporal views one after the other, in the channel order of the
                network; see `frame_indices`.
        """
        time = self.cfg.DATA.NUM_FRAMES
        if len(frames) % time:
            raise ValueError(f"{len(frames)} frames are not made of clips of {time}: give {time} frames per clip")
        return self.transform_prepared([self.views_of_video.prepare(frames)])

    def transform_prepared(self, videos: Sequence[Prepared]) -> Tensor:
        """Return the clips of videos from `VideoEvalDataset.prepare`; see `transform`."""
        with torch.no_grad():
            return self._to_device(self.views_of_video.views(videos))

    def frame_indices(self, length: int) -> list[int]:
        """Return the frames of all temporal views of a video of `length` frames, view by view."""
        return self.views_of_video.frame_indices(length, 0)

    def probabilities(self, scores: np.ndarray, views: int) -> np.ndarray:
        """Return probabilities (..., K) of scores (..., K), the sums or maxima over a number of views.

        For logits, they are the softmax of the mean over the views, or a sigmoid per class if the network was trained
        with a sigmoid per class. With DATA.MULTI_LABEL, the scores are sums or maxima of sigmoids.
        """
        method, loss = self.cfg.DATA.ENSEMBLE_METHOD, self.cfg.MODEL.LOSS_FUNC
        # in double precision, near scores remain different
        mean = torch.from_numpy(scores).double() / (views if method == "sum" else 1)
        if self.cfg.DATA.MULTI_LABEL:
            return mean.numpy()
        if sums_softmax(self.cfg):
            return (mean / mean.sum(-1, keepdim=True)).numpy()
        return (mean.sigmoid() if loss.startswith("bce") else mean.softmax(-1)).numpy()

    def _named(self, scores: np.ndarray, top: int) -> tuple[tuple[Class, ...], np.ndarray, np.ndarray]:
        """Return the first classes, the probabilities and the scores of a video; nothing without scores."""
        if not len(scores):
            return (), scores, scores
        probabilities = self.probabilities(scores, self.num_views)
        return top_classes(probabilities, self.class_names, top), probabilities, scores

    def _evaluate(
        self, paths: Path | Sequence[Path], run: Callable[[Any], Evaluation]
    ) -> list[tuple[str, np.ndarray, str]]:
        """Return path, sum or maximum over the views, and error of each video; `run` evaluates a loader."""
        given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
        if not len(given):
            raise ValueError("the list of videos is empty: give at least one path")
        names = [os.fspath(path) for path in given]
        # workers only where there is work for them
        workers = min(self.cfg.DATA_LOADER.NUM_WORKERS, usable_cores(), len(names) // 4)
        cfg = with_values(self.cfg, "DATA_LOADER.NUM_WORKERS", workers)
        videos = VideoList(names, np.full(len(names), UNKNOWN), source="the given videos")
        scores: dict[int, np.ndarray] = {}
        try:
            done = run(make_loader(cfg, "test", self.device, videos))
            scores, bad = dict(zip(done.index.tolist(), done.scores, strict=True)), dict(done.bad)
        except NothingDecodedError as error:
            bad = dict(error.bad)
        nothing = np.empty(0, np.float32)
        return [(path, scores.get(row, nothing), bad.get(path, "")) for row, path in enumerate(names)]


def with_values(cfg: CfgNode, *pairs: Any) -> CfgNode:
    """Return a frozen copy of a configuration with the values of KEY, VALUE, ..."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([*pairs])
    cfg.freeze()
    return cfg


def _one(found: Iterable[Any]) -> Any:
    """Return the only result, or raise its error."""
    (result,) = found
    if result.error:
        raise MediaError(result.path, result.error)
    return result
