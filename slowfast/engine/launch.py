"""Start the processes of a job: one, several on this machine, or those torchrun has started already."""

from __future__ import annotations

import logging
import os
import socket
import sys
from multiprocessing.queues import SimpleQueue

import torch
from fvcore.common.config import CfgNode

from slowfast.config import check_hardware, num_local_processes
from slowfast.engine.setup import prepare_output_dir
from slowfast.engine.test import test
from slowfast.engine.train import train
from slowfast.utils import distributed
from slowfast.utils.logging import setup_logging

logger = logging.getLogger(__name__)


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
    host, port = _meeting_point(init_method)
    environment = {"MASTER_ADDR": host, "MASTER_PORT": port, "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(local)}
    errors = torch.multiprocessing.get_context("spawn").SimpleQueue()
    try:
        torch.multiprocessing.spawn(_process, (cfg, environment, cfg.SHARD_ID * local, errors), nprocs=local)
    except torch.multiprocessing.ProcessExitedException as error:
        if not errors.empty():
            raise ValueError(errors.get()) from None
        raise RuntimeError(f"process {error.error_index} ended without a word: {error.msg}") from None


def _process(local_rank: int, cfg: CfgNode, environment: dict[str, str], first_rank: int, errors: SimpleQueue) -> None:
    os.environ.update(environment, RANK=str(first_rank + local_rank), LOCAL_RANK=str(local_rank))
    try:
        run(cfg)
    except ValueError as error:
        errors.put(str(error))  # the process that started this one tells the user, once
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def run(cfg: CfgNode) -> None:
    """Train and test, as the configuration asks, in this process of the group.

    Raises:
        ValueError: something of the user's is wrong; its traceback is in OUTPUT_DIR/log.txt.
    """
    _check_group(cfg)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if cfg.NUM_GPUS == 0 and local > 1:
        # the processes share the cores; more threads than cores would only wait for each other
        torch.set_num_threads(max(1, torch.get_num_threads() // local))
    distributed.init_process_group("gloo" if cfg.NUM_GPUS == 0 else cfg.DIST_BACKEND, distributed.device(cfg.NUM_GPUS))
    try:
        prepare_output_dir(cfg)
        setup_logging(cfg.OUTPUT_DIR, main=distributed.is_main())
        _run(cfg)
    finally:
        distributed.destroy_process_group()


def _run(cfg: CfgNode) -> None:
    world = distributed.world_size()
    logger.info("torch %s, %d process%s, output in %s", torch.__version__, world, "es" * (world > 1), cfg.OUTPUT_DIR)
    try:
        if cfg.TRAIN.ENABLE:
            train(cfg)
        if cfg.TEST.ENABLE:
            test(cfg)
    except Exception:
        logger.exception("stopped by an error")
        raise


def _check_group(cfg: CfgNode) -> None:
    """Compare the processes that torchrun started with the configuration, on which batch and learning rate depend."""
    world, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world != local * cfg.NUM_SHARDS:
        raise ValueError(
            f"{world} processes, {local} on this machine, are not those of NUM_SHARDS {cfg.NUM_SHARDS}; set it to the "
            "number of machines (torchrun's --nnodes)"
        )
    if cfg.NUM_GPUS and local != cfg.NUM_GPUS:
        raise ValueError(
            f"{local} processes on this machine and NUM_GPUS {cfg.NUM_GPUS} differ; every process drives one GPU "
            "(torchrun's --nproc_per_node)"
        )


def _meeting_point(init_method: str) -> tuple[str, str]:
    """Host and port of "tcp://host:port"; a free port of this machine for ""."""
    if not init_method:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return "127.0.0.1", str(listener.getsockname()[1])
    host, _, port = init_method.removeprefix("tcp://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--init_method {init_method!r} is not of the form tcp://HOST:PORT")
    return host, port
