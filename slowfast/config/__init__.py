"""Load, check, compare and write configurations."""

from slowfast.config.extensions import add_choice, check_extensions, import_extensions
from slowfast.config.keys import MAY_DIFFER
from slowfast.config.load import (
    changed_keys,
    check_values,
    check_variables,
    dump_config,
    format_config,
    get_cfg,
    is_key,
    load_config,
    recorded_config,
)
from slowfast.config.rules import ConfigError, check_hardware, num_local_processes

__all__ = [
    "MAY_DIFFER",
    "ConfigError",
    "add_choice",
    "changed_keys",
    "check_extensions",
    "check_hardware",
    "check_values",
    "check_variables",
    "dump_config",
    "format_config",
    "get_cfg",
    "is_key",
    "load_config",
    "num_local_processes",
    "recorded_config",
]

# here, because every process of a job imports this package, also a spawned one
import_extensions()
