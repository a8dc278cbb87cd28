"""Memory as it is measured: live bytes by torch's tracker, peaks of the CPU's and the GPU's allocator.

All numbers are bytes. ``tracked_*`` run on fake tensors: no memory is touched and nothing is computed, so they are
exact and quick for any size. ``allocated_*`` run for real.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from onenet_bench import models
from onenet_bench.spec import NetSpec


def tracked_inference(spec: NetSpec, resolution: int) -> int:
    """Peak of live bytes in an inference of one image, which is included, weights and buffers not."""
    with FakeTensorMode():
        net = models.build(spec).eval()
        image = torch.rand(1, spec.in_channels, resolution, resolution)

        def infer() -> None:
            with torch.no_grad():
                net(image)

        peak = _tracked(infer, net, image)
    return peak["Total"] - peak["Parameter"] - peak["Buffer"]


def tracked_training(spec: NetSpec, resolution: int, batch: int, precision: str = "float32") -> int:
    """Peak of live bytes in a training step that is not the first: weights, buffers, gradients, AdamW's state,
    saved tensors, images and masks."""
    with FakeTensorMode():
        step, net, optimiser, *inputs = _training_step(spec, resolution, batch, precision, "cpu")
        step()
        peak = _tracked(step, net, optimiser, *inputs)["Total"]
    return peak


def allocated_training(spec: NetSpec, resolution: int, batch: int) -> int:
    """The same as the CPU allocator saw it, for real: its live bytes before the step, and the most it added."""
    step, net, optimiser, *inputs = _training_step(spec, resolution, batch, "float32", "cpu")
    step()
    state = [value for values in optimiser.state.values() for value in values.values()]
    held: int = sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers(), *state, *inputs))
    return held + _allocated(step)


def allocated_inference(spec: NetSpec, resolution: int) -> int:
    """Peak of the CPU allocator in an inference of one image, which is included, weights and buffers not."""
    net = models.build(spec).eval()
    image = torch.rand(1, spec.in_channels, resolution, resolution)

    def infer() -> None:
        with torch.no_grad():
            net(image)

    infer()
    return image.numel() * image.element_size() + _allocated(infer)


def cuda_training(spec: NetSpec, resolution: int, batch: int) -> int:
    """``max_memory_allocated`` of a training step that is not the first, on the present GPU."""
    step, *_ = _training_step(spec, resolution, batch, "float32", "cuda")
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated())


def cuda_inference(spec: NetSpec, resolution: int) -> int:
    """``max_memory_allocated`` of an inference of one image on the present GPU, weights included."""
    net = models.build(spec).eval().cuda()
    image = torch.rand(1, spec.in_channels, resolution, resolution, device="cuda")
    with torch.no_grad():
        net(image)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        net(image)
        torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def _training_step(
    spec: NetSpec, resolution: int, batch: int, precision: str, device: str
) -> tuple[Callable[[], None], nn.Module, torch.optim.Optimizer, Tensor, Tensor]:
    """A step as ``onenet_bench.training`` takes it: logits are held until the weights have moved."""
    with torch.device(device):
        net = models.build(spec).train()
    optimiser = torch.optim.AdamW(net.parameters(), fused=True)
    side = resolution // spec.output_stride
    image = torch.rand(batch, spec.in_channels, resolution, resolution, device=device)
    target = torch.zeros(batch, side, side, dtype=torch.int64, device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            logits = net(image)
        loss = F.cross_entropy(logits.float(), target)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        optimiser.zero_grad()

    return step, net, optimiser, image, target


def _tracked(call: Callable[[], None], *external: Any) -> dict[str, int]:
    """Bytes by kind at the peak of ``call``, from torch's tracker."""
    from torch.distributed._tools.mem_tracker import MemTracker

    tracker = MemTracker()
    tracker.track_external(*external)
    with tracker:
        call()
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    return {str(getattr(kind, "value", kind)): size for kind, size in peak.items()}


def _allocated(call: Callable[[], None]) -> int:
    """The most bytes that the CPU allocator held beyond what it held before ``call``."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    live = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
