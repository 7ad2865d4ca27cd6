"""Import the modules of users that add rows to the tables of this package, and accept the names of these rows."""

from __future__ import annotations

import importlib
import os
import pkgutil
import traceback
from dataclasses import replace
from types import ModuleType

from slowfast.config.keys import KEYS
from slowfast.config.rules import ConfigError
from slowfast.config.values import one_of
from slowfast.utils.tables import close_to

VARIABLE = "SLOWFAST_IMPORT"
FAULTS: list[str] = []  # of the modules; `check_extensions` raises them, so that programs end as with a wrong key


def import_extensions() -> None:
    """Import the modules in SLOWFAST_IMPORT, which are separated by commas; add those that fail to `FAULTS`.

    They are named by a variable of the environment and not by a key, because a configuration may come from others, and
    must not choose code.
    """
    for name in filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))):
        try:
            module = importlib.import_module(name)
        except (Exception, SystemExit) as error:  # a script without a guard may exit
            FAULTS.append(_fault(name, error))
        else:
            FAULTS.extend(_without_code(name, module))


def check_extensions() -> None:
    """Refuse to go on without the modules in SLOWFAST_IMPORT, of this process.

    Raises:
        ConfigError: one fault per module that cannot be imported.
    """
    if FAULTS:
        raise ConfigError(FAULTS)


def _fault(name: str, error: BaseException) -> str:
    """Return why a module cannot be imported: it does not exist, or else the traceback from its first line on."""
    if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
        folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        near = close_to(name, (module.name for module in pkgutil.iter_modules(folders)))
        return (
            f"{VARIABLE} names {name}, which is not a module in sys.path{near}: write it as in an import, separate "
            "several by commas, and add their folder to PYTHONPATH"
        )
    step = error.__traceback__
    while step and step.tb_frame.f_globals.get("__name__", "").startswith((__name__, "importlib")):
        step = step.tb_next
    lines = traceback.format_exception(type(error), error, step)
    return f"{VARIABLE} names {name}, which fails: correct it, or remove it\n{''.join(lines).rstrip()}"


def _without_code(name: str, module: ModuleType) -> list[str]:
    """Return a fault if Python has imported a folder without __init__.py, of which it executes nothing."""
    if getattr(module, "__file__", None) or not hasattr(module, "__path__"):
        return []
    found = sorted(each.name for each in pkgutil.iter_modules(module.__path__))
    cure = f"name its modules, such as {name}.{found[0]}" if found else "add the folder of your modules to PYTHONPATH"
    return [f"{VARIABLE} names {name}, which is a folder ({', '.join(module.__path__)}) and no module: {cure}"]


def add_choice(key: str, choice: str) -> None:
    """Accept another value of a key, the name of a row that an extension adds, for example to `LOSSES`.

    Args:
        key: a key whose values are listed, for example MODEL.LOSS_FUNC.
        choice: the value.

    Raises:
        ValueError: there is no such key.
    """
    if key not in KEYS:
        raise ValueError(f"unknown key {key}{close_to(key, KEYS)}: docs/CONFIG.md lists all")
    KEYS[key] = replace(KEYS[key], kind=KEYS[key].kind | one_of(choice))
