"""Define the rules of a network for the weights that are loaded into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class WeightRules:
    """The rules of a network for the weights that are loaded into it.

    The defaults suit a network of one classifier without released weights. A network overrides them by
    attributes of the same names, or by inheriting from this class.

    Attributes:
        head_names: names of the modules that contain the classifiers.
        identity_at_start: parts of the names of tensors that have no effect at their initial values, so that a
            training can start from weights without any of them.
        surplus_at_start: parts of the names of tensors that the network does not have, and that a training leaves out
            of the weights that it starts from.
        kinetics_orders: orders of the classes in released classifiers of Kinetics, by number of classes; see
            `slowfast.weights.class_order`.
        section: section with the arguments of the network, in the configuration in a checkpoint.
        options: arguments of the network, from which `unseen_options` selects some.
    """

    head_names: tuple[str, ...] = ("head",)
    identity_at_start: tuple[str, ...] = ()
    surplus_at_start: tuple[str, ...] = ()
    kinetics_orders: Mapping[int, str] = {}
    section: str = ""
    options: Mapping[str, Any] = {}

    @staticmethod
    def unseen_options(options: Mapping[str, Any]) -> dict[str, Any]:
        """Return values of `options` that tensor shapes do not show; they are equal if the networks are equal."""
        return {}

    def check_options(self, trained: Mapping[str, Any]) -> None:
        """Compare the arguments of the network with those with which weights were trained, as far as they are known.

        Raises:
            ValueError: the weights would give another result in this network.
        """
        if not self.options or not isinstance(self.options, Mapping):  # pyright: ignore # a network of a user
            return
        here = self.unseen_options(self.options)
        given = {name: trained[name] for name in here if name in trained}
        for name, there in self.unseen_options({**self.options, **given}).items():
            if name in given and there != here[name]:
                raise ValueError(
                    f"the checkpoint was trained with {name} {given[name]}, and the model here has "
                    f"{self.options[name]}, which computes another result: set it to {given[name]}"
                )

    def check_image_vit(self, layout: str, activation: str) -> Sequence[str]:
        """Check that the activation of an image ViT is that of the weights.

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
        """Return a tensor converted to the `shape` of the parameter `name`; None if that is not possible."""
        return None


def rules_of(model: nn.Module) -> WeightRules:
    """Return the rules of a network: its own attributes, and defaults for attributes that it lacks."""
    if isinstance(model, WeightRules):
        return model
    rules = WeightRules()
    names = [name for name in vars(WeightRules) if not name.startswith("_") and hasattr(model, name)]
    vars(rules).update({name: getattr(model, name) for name in names})
    return rules
