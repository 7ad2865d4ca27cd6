"""Import the modules of users that add rows to the tables of this package, and accept the names of these rows."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import import_module

from slowfast.config.keys import KEYS
from slowfast.config.values import one_of

VARIABLE = "SLOWFAST_IMPORT"


def import_extensions() -> None:
    """Import the modules in SLOWFAST_IMPORT, which are separated by commas.

    They are named by a variable of the environment and not by a key, because a configuration may come from others, and
    must not choose code.

    Raises:
        ImportError: there is no such module.
    """
    for name in filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))):
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.partition(".")[0] and error.name != name:
                raise  # a module that the extension imports
            raise ImportError(
                f"{VARIABLE} names {name}, which is not a module in sys.path: write it as in an import, and add its "
                "folder to PYTHONPATH"
            ) from None


def add_choice(key: str, choice: str) -> None:
    """Accept another value of a key, the name of a row that an extension adds, for example to `LOSSES`.

    Args:
        key: a key whose values are listed, for example MODEL.LOSS_FUNC.
        choice: the value.

    Raises:
        KeyError: there is no such key.
    """
    KEYS[key] = replace(KEYS[key], kind=KEYS[key].kind | one_of(choice))
