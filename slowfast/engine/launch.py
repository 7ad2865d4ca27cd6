"""Start the processes of a job: one, several on this machine, or those torchrun has started already."""

from __future__ import annotations

import logging
import os
import socket
import sys

import torch
from fvcore.common.config import CfgNode

from slowfast.config import check_hardware, num_local_processes
from slowfast.engine.test import test
from slowfast.engine.train import train
from slowfast.utils import distributed
from slowfast.utils.logging import setup_logging


def launch(cfg: CfgNode, init_method: str = "") -> None:
    """Run the job of the configuration in as many processes as it asks for.

    Under torchrun (RANK is set) this process is one of them. Otherwise NUM_PROCESSES, or one a GPU, are spawned on this
    machine; with NUM_SHARDS > 1 the machine is number SHARD_ID of a job that meets at `init_method`.

    Args:
        init_method: "tcp://host:port" of shard 0; needed only for NUM_SHARDS > 1.

    Raises:
        ValueError: the machine is not what the configuration needs, or NUM_SHARDS > 1 without a meeting point.
    """
    check_hardware(cfg)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        run(cfg)
        return
    local = num_local_processes(cfg)
    world = local * cfg.NUM_SHARDS
    if world == 1:
        run(cfg)
        return
    if cfg.NUM_SHARDS > 1 and not init_method:
        raise ValueError(
            f"NUM_SHARDS {cfg.NUM_SHARDS} needs a meeting point: --init_method tcp://HOST_OF_SHARD_0:PORT, or torchrun"
        )
    host, port = init_method.removeprefix("tcp://").split(":") if init_method else ("127.0.0.1", str(_free_port()))
    environment = {"MASTER_ADDR": host, "MASTER_PORT": port, "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(local)}
    try:
        torch.multiprocessing.spawn(_process, (cfg, environment, cfg.SHARD_ID * local), nprocs=local)
    except torch.multiprocessing.ProcessExitedException as error:
        raise SystemExit(error.exit_code) from None  # the process has said why


def _process(local_rank: int, cfg: CfgNode, environment: dict[str, str], first_rank: int) -> None:
    os.environ.update(environment, RANK=str(first_rank + local_rank), LOCAL_RANK=str(local_rank))
    try:
        run(cfg)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run(cfg: CfgNode) -> None:
    """Train and test, as the configuration asks, in this process of the group."""
    # Without a GPU the processes share the cores; more threads than cores would only wait for each other.
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if cfg.NUM_GPUS == 0 and local > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // local))
    distributed.init_process_group("gloo" if cfg.NUM_GPUS == 0 else cfg.DIST_BACKEND)
    try:
        setup_logging(cfg.OUTPUT_DIR, main=distributed.is_main())
        logger = logging.getLogger(__name__)
        logger.info(
            "torch %s, %d process(es), output in %s", torch.__version__, distributed.world_size(), cfg.OUTPUT_DIR
        )
        if cfg.TRAIN.ENABLE:
            train(cfg)
        if cfg.TEST.ENABLE:
            test(cfg)
    finally:
        distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
