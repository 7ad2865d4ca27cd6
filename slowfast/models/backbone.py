"""Define the interface of backbones, and that of timm's models, for programs that were written for timm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from slowfast.models.layers import classifier, single_input
from slowfast.weights.class_order import AS_LISTED
from slowfast.weights.network import WeightRules

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic", "crop_pct": 0.875}
KINETICS = {"mean": (0.45, 0.45, 0.45), "std": (0.225, 0.225, 0.225), "interpolation": "bilinear", "crop_pct": 1.0}


@runtime_checkable
class Backbone(Protocol):
    """An `nn.Module` that training and testing can use.

    The class takes the keyword arguments `num_classes`, `in_channels` and options of its own. These attributes are
    optional: `no_weight_decay()`, which returns the names of parameters without weight decay;
    `set_grad_checkpointing(blocks, keep)`; `training_loss(outputs, target, loss)`, which returns the loss () of the
    tuple of outputs of a training step, given the configured loss, a function of logits and target; and those of
    `slowfast.weights.network.WeightRules`, by which weights are adapted or refused. `forward` must call layers instead
    of reading `layer.weight`, so that layers can be wrapped, and read sizes as `x.shape[0]`, so that the network can be
    exported.

    Attributes:
        head_names: prefixes of the parameter names of the classifiers.
    """

    head_names: tuple[str, ...]

    def forward(self, video: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return logits (B, K) of a video (B, C, T, H, W) or of images (B, C, H, W).

        In training it may return several tensors, the first one the logits of the metrics; without `training_loss`, all
        are logits, and the loss is the mean of their losses.
        """
        ...


class TimmBackbone(WeightRules, nn.Module):
    """A network of stages or blocks and one or more classifiers, with the interface of timm's models.

    A subclass sets these attributes and defines `forward_stages`, `forward_head`, `group_matcher`,
    `set_grad_checkpointing` and `prune_intermediate_layers`.

    Attributes:
        pools: allowed values of `global_pool`: "avg" is the mean over positions, "token" a token of the network, "" no
            pooling (feature maps).
        num_features: number of features that the classifiers take.
        feature_info: per stage or block, its width, its strides in space and time, and its module.
        input_shape: (C, T, H, W) or (C, H, W) of the input for which a model of the zoo is made.
        class_names: class names of the outputs; None if they are not known.
        class_order: order of the outputs without `class_names`, see `slowfast.weights.class_order`.
        load_report: the `slowfast.weights.load.LoadReport` of the last load.
    """

    pools: tuple[str, ...] = ("avg", "")
    num_features: int
    num_classes: int
    feature_info: list[dict[str, Any]]
    input_shape: tuple[int, ...]
    pretrained_cfg: dict[str, Any]
    default_cfg: dict[str, Any]
    class_names: list[str] | None
    class_order: str
    load_report: Any

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.global_pool = num_classes, self.pools[0]
        self.class_names, self.class_order = None, AS_LISTED[0]

    def forward_stages(self, video: Tensor, taps: dict[int, Any], stop: int | None = None) -> Tensor:
        """Return the features that `forward_head` takes.

        Args:
            video: (B, C, T, H, W), or images (B, C, H, W).
            taps: dictionary whose keys are numbers of stages or blocks; it gets the feature map (B, C', T', H', W')
                after each of them.
            stop: number of stages or blocks to run; None runs all.
        """
        raise NotImplementedError

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, K) of features, or the input of the classifier."""
        raise NotImplementedError

    def new_classifier(self, num_classes: int) -> nn.Module:
        """Return a linear classifier with initial values; the identity for 0 classes."""
        return classifier(self.num_features, num_classes)

    def take_indices(self, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
        """Return the numbers of the stages or blocks in `indices`, and the last number; see `forward_intermediates`."""
        from timm.models._features import feature_take_indices

        return feature_take_indices(len(self.feature_info), indices)  # pyright: ignore[reportArgumentType]

    def forward_features(self, video: Tensor) -> Tensor:
        """Return the features of a video (B, C, T, H, W) or of images (B, C, H, W); see the class for their shape."""
        return self.forward_stages(video, {})

    def forward_intermediates(
        self,
        video: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the features, and the feature maps (B, C', T', H', W') after some stages or blocks of `feature_info`.

        Args:
            video: as for `forward_features`.
            indices: numbers of stages or blocks, or one number n for the last n; None is all.
            norm: normalize the map of the last stage, in networks that have a norm for it.
            stop_early: stop after the last of them; the features are then its output.
            output_fmt: must be "NCHW", channels first.
            intermediates_only: return only the feature maps.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt {output_fmt!r} is not supported: use 'NCHW', channels first")
        depth = len(self.feature_info)
        wanted, last = self.take_indices(indices)
        taps: dict[int, Any] = dict.fromkeys(wanted)
        features = self.forward_stages(video, taps, last + 1 if stop_early else None)
        if norm and depth - 1 in taps and isinstance(final := getattr(self, "norm", None), nn.Module):
            taps[depth - 1] = final(taps[depth - 1])
        maps = [taps[index] for index in wanted]
        return maps if intermediates_only else (features, maps)

    def forward(self, video: Tensor | Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
        """Return logits (B, K); in training, a network may return several."""
        return self.forward_head(self.forward_features(single_input(video)))

    def classifier_names(self) -> tuple[str, ...]:
        """Return the names of the layers in `head_names` whose outputs are classes."""
        return self.head_names

    def get_classifier(self) -> Any:
        """Return the classifier, or a tuple of them."""
        layers = tuple(self.get_submodule(name) for name in self.classifier_names())
        return layers[0] if len(layers) == 1 else layers

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifiers by new ones.

        Args:
            num_classes: number of outputs; 0 removes the classifiers.
            global_pool: one of `pools`; None keeps it. "" returns feature maps and needs `num_classes` 0.
        """
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in self.pools or (num_classes and not pool):
            choices = [choice for choice in self.pools if choice or not num_classes]
            raise ValueError(f"global_pool {pool!r} is not possible with {num_classes} classes: choose from {choices}")
        self.num_classes, self.global_pool = num_classes, pool
        self.class_names, self.class_order = None, AS_LISTED[0]
        like = next(self.parameters())
        for name in self.classifier_names():
            self.set_submodule(name, self.new_classifier(num_classes).to(like))

    def no_weight_decay(self) -> set[str]:
        """Return the names of multi-dimensional parameters without weight decay: none in the released recipes."""
        return set()

    def describe(self, name: str, input_shape: tuple[int, ...], num_classes: int) -> None:
        """Set timm's attribute `pretrained_cfg` for a model of this name with released weights."""
        self.input_shape = input_shape
        convolutions = (name for name, part in self.named_modules() if isinstance(part, (nn.Conv2d, nn.Conv3d)))
        layers = self.classifier_names()
        self.pretrained_cfg = self.default_cfg = {
            "architecture": name,
            "num_classes": num_classes,
            "input_size": input_shape,
            "fixed_input_size": False,
            "pool_size": tuple(size // self.feature_info[-1]["reduction"] for size in input_shape[-2:]),
            "first_conv": next(convolutions),
            "classifier": layers[0] if len(layers) == 1 else layers,
            **(IMAGENET if len(input_shape) == 3 else KINETICS),
        }


def feature_getter(model: TimmBackbone, out_indices: int | Sequence[int]) -> Any:
    """Return timm's `FeatureGetterNet`, which returns the maps after some stages or blocks; `model` is truncated.

    Raises:
        ValueError: the network does not have a stage or block.
    """
    from timm.models._features import FeatureGetterNet

    depth = len(model.feature_info)
    chosen = range(depth - out_indices, depth) if isinstance(out_indices, int) else out_indices
    if not chosen or not all(-depth <= index < depth for index in chosen):
        raise ValueError(f"out_indices {out_indices} must be numbers of stages or blocks from 0 to {depth - 1}")
    features: Any = FeatureGetterNet(model, out_indices=tuple(index % depth for index in chosen))
    features.input_shape, features.pretrained_cfg = model.input_shape, model.pretrained_cfg
    features.default_cfg = model.pretrained_cfg
    return features
