"""Train and test a model: python tools/run_net.py --cfg exp/demo/config.yaml [KEY VALUE ...]."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

# Threads that wait for each other on a shared core had better sleep: OpenMP would spin, many times longer than the work
# takes. It has to be set before PyTorch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from slowfast.config import format_config, load_config_with_sources


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; --num_shards and --shard_id are the official spelling of NUM_SHARDS and SHARD_ID."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="experiment, such as exp/demo/config.yaml")
    parser.add_argument("--show", action="store_true", help="print the resolved configuration and where it came from")
    parser.add_argument("--num_shards", help="machines of the job (NUM_SHARDS)")
    parser.add_argument("--shard_id", help="number of this machine (SHARD_ID)")
    parser.add_argument("--init_method", default="", metavar="tcp://HOST:PORT", help="meeting point of the machines")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="change configuration values")
    return parser.parse_intermixed_args(argv)


def main() -> int:
    """Run the job; a fault of the user's ends in one message and exit code 2."""
    args = parse_args()
    overrides = list(args.overrides)
    for key, value in (("NUM_SHARDS", args.num_shards), ("SHARD_ID", args.shard_id)):
        if value is not None:
            overrides += [key, value]
    # the place in our code that warns says nothing to the person who runs it
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        cfg, sources = load_config_with_sources(args.cfg, overrides)
        if args.show:
            print(format_config(cfg, sources))
            return 0
        # Not before --show and configuration errors: importing the engine takes seconds.
        from slowfast.engine.launch import launch

        try:
            launch(cfg, args.init_method)
        finally:
            draw_curves(cfg)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def draw_curves(cfg) -> None:
    """Draw OUTPUT_DIR/curves.png from what was logged so far, in one process of the job."""
    output_dir = Path(cfg.OUTPUT_DIR)
    if os.environ.get("RANK", "0") == "0" and cfg.SHARD_ID == 0 and (output_dir / "metrics.jsonl").is_file():
        from slowfast.visualization.plots import plot_curves

        plot_curves(output_dir, output_dir / "curves.png")


if __name__ == "__main__":
    sys.exit(main())
