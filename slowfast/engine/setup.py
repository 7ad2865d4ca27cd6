"""Set up what training and testing share: loaders, precision, and the transfer of tensors to and from the device."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.utils.data import DataLoader

from slowfast.datasets.build import Split, build_loader
from slowfast.datasets.lists import VideoList
from slowfast.datasets.transforms import normalize
from slowfast.datasets.views import Views
from slowfast.run.preflight import build_alike
from slowfast.run.watchdog import progress
from slowfast.utils import distributed
from slowfast.utils.memory import prefer_large_pages

logger = logging.getLogger(__name__)


def make_loader(cfg: CfgNode, split: Split, device: torch.device, samples: VideoList | None = None) -> DataLoader[Any]:
    """Return this process's loader of a split; every process must call it, and must read the same list.

    It loads `samples`, if they are given, instead of the list of the split.

    Raises:
        ValueError: in every process, if a list or file cannot be read, or the lists differ.
    """
    loader = build_alike(
        lambda: build_loader(
            cfg,
            split,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            local_world_size=distributed.local_world_size(),
            pin_memory=cfg.DATA_LOADER.PIN_MEMORY and device.type == "cuda",
            samples=samples,
        )
    )
    progress()
    return loader


def listed(loader: DataLoader[Any]) -> VideoList:
    """Return the list that a loader reads."""
    return loader.dataset.samples  # pyright: ignore[reportAttributeAccessIssue]


def amp_dtype(cfg: CfgNode, device: torch.device) -> torch.dtype | None:
    """Return the autocast type of training, None for float32; every process must call it.

    "auto" is bfloat16 if the GPUs of all processes have it, else float16, and float32 on the CPU.
    """
    if not cfg.TRAIN.MIXED_PRECISION:
        return None
    if cfg.TRAIN.AMP_DTYPE != "auto":
        return _autocast_type(cfg.TRAIN.AMP_DTYPE, device)
    if device.type == "cpu":
        return None
    fits = torch.cuda.is_bf16_supported(including_emulation=False) and _bfloat16_convolution_is_right(device)
    # gradients that only some processes have scaled would be added up
    return torch.bfloat16 if all(distributed.all_gather(fits)) else torch.float16


def inference_dtype(cfg: CfgNode, device: torch.device) -> torch.dtype | None:
    """Return the autocast type of a test, None for float32."""
    return _autocast_type(cfg.TEST.AMP_DTYPE, device)


def _autocast_type(name: str, device: torch.device) -> torch.dtype | None:
    """Return the type of a name; None for float32."""
    if name == "bfloat16" and device.type == "cpu" and not _has_bfloat16_instructions():
        logger.warning("this CPU has no instructions for bfloat16 (AVX512-BF16, AMX, BF16), so float32 is faster")
    return None if name == "float32" else getattr(torch, name)


def _has_bfloat16_instructions() -> bool:
    """Return whether this CPU has instructions for bfloat16: AVX512-BF16, AMX, or BF16 of ARM (Grace, Graviton3)."""
    if platform.machine() == "aarch64":
        # oneDNN's own check, which some builds omit; on x86 it is also true if there is only AVX512
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported()


@cache
def _bfloat16_convolution_is_right(device: torch.device) -> bool:
    """Compare a 3D convolution in bfloat16 with float32: some releases of cuDNN (9.8 to 9.10) get it wrong."""
    generator = torch.Generator(device).manual_seed(0)
    video = torch.randn(2, 16, 4, 14, 14, device=device, generator=generator)
    kernel = torch.randn(32, 16, 3, 3, 3, device=device, generator=generator)
    exact = torch.nn.functional.conv3d(video, kernel, padding=1)
    half = torch.nn.functional.conv3d(video.bfloat16(), kernel.bfloat16(), padding=1).float()
    error = float((half - exact).abs().max() / exact.abs().max())
    if error > 3e-2:
        logger.warning(
            "bfloat16 3D convolutions are wrong here (error %.2g, torch %s, cuDNN %s); training in float16",
            error, torch.__version__, torch.backends.cudnn.version(),
        )  # fmt: skip
    return error <= 3e-2


class Inference(nn.Module):
    """A network whose batches have a number format and, if it is compiled, one size.

    Args:
        model: from clips (B, C, T, H, W) to logits (B, K).
        dtype: of autocast; None for float32.
        clips: largest B; if `compiled`, smaller batches are filled up, because every other size compiles the network
            again.
        compiled: compile the network.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None, clips: int, compiled: bool) -> None:
        super().__init__()
        self.network = model
        if compiled:
            compile_blocks(model)
        self.dtype, self.clips = dtype, clips if compiled else 0
        self.train(model.training)

    def forward(self, video: Tensor) -> Tensor:
        count = len(video)
        if count < self.clips:
            video = torch.cat([video, video[-1:].expand(self.clips - count, *video.shape[1:])])
        with torch.autocast(video.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            return self.network(video)[:count]


def compile_blocks(model: nn.Module) -> None:
    """Compile the blocks of a network (the children of its module lists), or the whole network if it has none.

    Equal blocks share their compiled code, so this takes a fraction of the time of compiling the whole network. Names,
    buffers and the hooks of distributed training do not change.
    """
    # one compiled version per type, size and mode of the blocks of a class; the limit counts all of them
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)  # pyright: ignore
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for block in [block for blocks in lists for block in blocks] or [model]:
        if block._compiled_call_impl is None:
            block.compile(dynamic=False)


def layout(ndim: int) -> torch.memory_format:
    """Return the memory format of weights and inputs of `ndim` dimensions: 5 for clips, 4 for images."""
    return torch.channels_last if ndim == 4 else torch.channels_last_3d


def place(model: nn.Module, device: torch.device) -> None:
    """Move a model to the device, in the memory format that suits it."""
    model.to(device)
    for parameter in model.parameters():
        if parameter.ndim in (4, 5):
            parameter.data = parameter.data.contiguous(memory_format=layout(parameter.ndim))


def share_weights(model: nn.Module) -> None:
    """Give every process the weights of the main one; the others may have read a later file of the same name."""
    for tensor in (*model.parameters(), *model.buffers()):
        sent = tensor.detach().contiguous()
        distributed.broadcast_tensor(sent)
        tensor.detach().copy_(sent)


def clip_mover(cfg: CfgNode, device: torch.device, reuse: bool = False) -> Callable[[Any], Tensor]:
    """Return a function that brings clips to the device, normalized and in the memory format that suits it.

    It takes clips (B, C, T, H, W), images (B, C, H, W), or the `Views` of an evaluation. With `reuse`, it cuts views on
    the CPU into the memory of the clips before, which must no longer be used.
    """
    mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in (cfg.DATA.MEAN, cfg.DATA.STD))
    before: list[Tensor] = []
    copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def cut(views: Views) -> Tensor:
        shape = views.shape
        out = next((clips for clips in before if clips.shape == shape), None)
        if out is None:
            out = torch.empty(shape, device=device, memory_format=layout(5))
            if device.type == "cpu":
                prefer_large_pages(out.data_ptr(), out.nbytes)
        before[:] = [out] if reuse and device.type == "cpu" else []
        return views.cut((mean, std), out)

    def move(video: Tensor | Views) -> Tensor:
        if isinstance(video, Views):
            return cut(video)
        video = in_stream(copies, partial(video.to, device, non_blocking=True))
        video = video.contiguous(memory_format=layout(video.ndim))
        return normalize(video if video.ndim == 5 else video[:, :, None], mean, std).view(video.shape)

    return move


def in_stream(stream: torch.cuda.Stream | None, make: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Return a tensor that is made in another stream of the GPU, beside the work of this one; None is no stream."""
    if stream is None:
        return make(*arguments)
    with torch.cuda.stream(stream):
        made = make(*arguments)
    current = torch.cuda.current_stream(stream.device)
    current.wait_stream(stream)
    made.record_stream(current)  # or its memory could be used again while the current stream reads it
    return made


def copy_to_cpu(values: Tensor) -> Callable[[], Tensor]:
    """Start to copy values to the CPU; return a function that waits for this copy, but not for later work."""
    if not values.is_cuda:
        return lambda: values
    copied, arrived = values.to("cpu", non_blocking=True), torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(values.device))  # the device of the values need not be the current one

    def wait() -> Tensor:
        arrived.synchronize()
        return copied

    return wait
