"""Print docs/CONFIG.md, the reference page of all keys: python -m slowfast.config > docs/CONFIG.md."""

from __future__ import annotations

import sys

from slowfast.config.keys import KEYS, NAME, SECTIONS, Key
from slowfast.utils.io import guarded

HEAD = """\
# All configuration keys

Set a key in a YAML file, as `KEY: VALUE` below its section, or on the command line, as `SECTION.KEY VALUE`:

```bash
source .venv/bin/activate
python tools/run_net.py --cfg exp/demo/config.yaml --show SOLVER.MAX_EPOCH 20
```

`--show` prints all values and the origin of those that are not the default, even if they contradict each other.
Without it, the run starts.

- `_BASE_: FILE` or a list of files, relative to the YAML file, is read first. The order is: defaults, bases, experiment
  file, command line; the later wins.
- `${NAME}` in a value is replaced by that variable of the environment, for example `${DATA_ROOT}/k400`.
- A resumed run may have another value of the keys marked in the column *resume*. It may also divide the videos of a
  step in another way (`NUM_SHARDS`, `TRAIN.BATCH_SIZE`, `SOLVER.ACCUMULATION_STEPS`) if their number and the learning
  rate stay equal, and a finished run may have a larger `SOLVER.MAX_EPOCH`. All other values belong to the recipe.
- Keys of SlowFast that are not listed are accepted and ignored, with a warning that names the replacement.

This page is made by `python -m slowfast.config > docs/CONFIG.md`.
"""


def row(key: Key) -> str:
    """Return the row of a key; the keys in its text become code."""
    meaning = NAME.sub(lambda match: f"`{match[0]}`" if match[0] in KEYS else match[0], key.help)
    default = str(key.default).replace("|", "\\|") if key.default != "" else '""'
    values = key.kind.words.partition(" (")[0].replace("<", "&lt;").replace(">", "&gt;").replace("*", "\\*")
    return f"| `{key.name}` | `{default}` | {values} | {'x' * key.may_differ} | {meaning} |"


def page() -> str:
    """Return the page."""
    text = HEAD
    for section, title in SECTIONS.items():
        text += f"\n## {title}\n\n| key | default | value | resume | meaning |\n|---|---|---|---|---|\n"
        text += "".join(f"{row(key)}\n" for key in KEYS.values() if key.name.rpartition(".")[0] == section)
    return text


def main() -> int:
    """Print the page; return 0."""
    print(page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
