"""Ask a network for its rules about weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class WeightRules:
    """The rules of a network for the weights that are loaded into it.

    The defaults suit a network of one classifier without released weights. A network changes them by attributes of the
    same names, or by inheriting from this class.

    Attributes:
        head_names: names of the modules that hold the classifiers.
        identity_at_start: parts of the names of tensors that change nothing while they have their initial values, so
            that a training can start from weights that contain none of them.
        kinetics_orders: orders of the classes in released classifiers of Kinetics, by number of classes; see
            `slowfast.weights.class_order`.
        section: section of the configuration in a checkpoint that contains the arguments of the network.
        options: the arguments that `unseen_options` takes.
    """

    head_names: tuple[str, ...] = ("head",)
    identity_at_start: tuple[str, ...] = ()
    kinetics_orders: Mapping[int, str] = {}
    section: str = ""
    options: Mapping[str, Any] = {}

    @staticmethod
    def unseen_options(options: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of `options` that the shapes of tensors do not show, equal where the networks are."""
        return {}

    def check_options(self, trained: Mapping[str, Any]) -> None:
        """Compare arguments with those that weights were trained with.

        Args:
            trained: some arguments of the network, by name.

        Raises:
            ValueError: the weights compute another result here.
        """
        here = self.unseen_options(self.options)
        given = {name: trained[name] for name in here if name in trained}
        for name, there in self.unseen_options({**self.options, **given}).items():
            if name in given and there != here[name]:
                raise ValueError(
                    f"the checkpoint was trained with {name} {given[name]}, and the model here has "
                    f"{self.options[name]}, which computes another result: set it to {given[name]}"
                )

    def check_image_vit(self, layout: str, activation: str) -> Sequence[str]:
        """Compare the activation of an image ViT with that of weights.

        Args:
            layout: name of the layout of the weights, for messages.
            activation: "gelu", "quick_gelu", or "" if the weights do not show it.

        Returns:
            Remarks for the report.

        Raises:
            ValueError: the activations differ.
        """
        return ()

    def resize_parameter(self, name: str, value: Tensor, shape: torch.Size) -> Tensor | None:
        """Return a tensor of another shape as the parameter `name` of this shape; None if that is not possible."""
        return None


def rules_of(model: nn.Module) -> WeightRules:
    """Return the rules of a network: its own attributes, and the defaults for those that it lacks."""
    if isinstance(model, WeightRules):
        return model
    rules = WeightRules()
    names = [name for name in vars(WeightRules) if not name.startswith("_") and hasattr(model, name)]
    vars(rules).update({name: getattr(model, name) for name in names})
    return rules
