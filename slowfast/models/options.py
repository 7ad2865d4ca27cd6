"""Check the keyword arguments of a network that come from users."""

from __future__ import annotations

import inspect
import numbers
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, Union, get_args, get_origin, get_type_hints

from torch import nn

from slowfast.utils.tables import close_to


def check_options(
    name: str, network: Callable[..., nn.Module], options: Mapping[str, Any], others: Iterable[str] = ()
) -> None:
    """Check that a network has the options, and that their values have the annotated types.

    Args:
        name: name of the network, for messages.
        network: class of the network.
        options: keyword arguments other than `num_classes`.
        others: further names that the user may choose from.

    Raises:
        ValueError: an option is unknown, or a value has another type.
    """
    parameters = parameters_of(network)
    kinds = {option: kind for part in _passed_on(network)[::-1] for option, kind in get_type_hints(part).items()}
    known = [*others, *(option for option in parameters if option != "num_classes")]
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"{name} has no option {option!r}{close_to(option, known)}: choose from {known}")
        if option in kinds and not _is_a(value, kinds[option]):
            written = parameters[option].annotation  # a text under `from __future__ import annotations`
            kind = written if isinstance(written, str) else inspect.formatannotation(written)
            raise ValueError(f"{name}: {option} {value!r} must be {kind}")


def parameters_of(network: Callable[..., nn.Module]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a network; if it takes **options, also those of its base class, which gets them."""
    found: dict[str, inspect.Parameter] = {}
    for part in _passed_on(network):
        found |= {name: one for name, one in inspect.signature(part).parameters.items() if name not in found}
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: one for name, one in found.items() if name != "self" and one.kind not in variable}


def _passed_on(network: Callable[..., nn.Module]) -> list[Callable[..., Any]]:
    """Return the functions whose parameters a network takes, from the class to its bases as far as it has **options."""
    if not inspect.isclass(network):
        return [network]
    found: list[Callable[..., Any]] = []
    for base in takewhile(lambda base: base is not nn.Module, network.__mro__):
        if "__init__" in vars(base):
            found.append(vars(base)["__init__"])
            kinds = [parameter.kind for parameter in inspect.signature(found[-1]).parameters.values()]
            if inspect.Parameter.VAR_KEYWORD not in kinds:
                break
    return found


def _is_a(value: Any, kind: Any) -> bool:
    """Return whether a value has an annotated type; numbers may be of any library, sequences of any kind."""
    if kind is Any:
        return True
    if get_origin(kind) in (Union, types.UnionType):
        return any(_is_a(value, option) for option in get_args(kind))
    if get_origin(kind) is Sequence:
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        return is_list and all(_is_a(item, get_args(kind)[0]) for item in value)
    if kind in (int, float) and not isinstance(value, bool):
        return isinstance(value, numbers.Integral if kind is int else numbers.Real)
    return kind not in (int, float) and isinstance(value, get_origin(kind) or kind)
