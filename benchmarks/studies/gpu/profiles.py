"""Where a call's time goes, by torch.profiler (CUPTI): by kernel, and by part of the model.

On a CPU, in a dry run, operators take the place of kernels.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from ....encoder.layers import encoder_blocks
from ....kernels.accelerate import AcceleratedFastViTHD
from .job import Job

PREFIX = "part: "
KEPT = 60
"""Kernels in a file, the longest first; the others are summed up."""
NAME_LENGTH = 120
BESIDE_BLOCKS = {"downsample": " embedding", "pos_emb": " position"}
"""What names of a stage's other modules end with."""

Times = list[tuple[str, float]]


def by_kernel(run: Callable[[], object], *, calls: int) -> dict[str, Any]:
    """Microseconds of one call by kernel: `total_us`, and `kernels` with name, launches and time."""
    events = _profiled(run, calls)
    found: dict[str, list[float]] = defaultdict(list)
    for event in events:
        for name, us in _device_events(event):
            found[name[:NAME_LENGTH]].append(us)
    rows: list[dict[str, Any]] = [
        {"name": name, "launches": len(times) / calls, "us": sum(times) / calls} for name, times in found.items()
    ]  # fmt: skip
    rows.sort(key=lambda row: -row["us"])
    rest, total = (sum(row["us"] for row in some) for some in (rows[KEPT:], rows))
    launches = sum(row["launches"] for row in rows)
    return {"total_us": total, "launches": launches, "kernels": rows[:KEPT], "others_us": rest}


def by_part(model: AcceleratedFastViTHD, x: Tensor, *, calls: int) -> dict[str, Any]:
    """Microseconds of one call by part of the model: `parts`, with kernels' time and launches."""
    handles = [h for name, module in named_parts(model) for h in _ranges(name, module)]
    try:
        events = _profiled(lambda: model(x), calls)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, list[float]] = defaultdict(list)
    for event in events:
        part = _part_of(event)
        for _, us in _caused(event):
            found[part].append(us)
    rows = [{"part": part, "launches": len(times) / calls, "us": sum(times) / calls} for part, times in found.items()]
    return {"parts": sorted(rows, key=lambda row: str(row["part"]))}


def named_parts(model: AcceleratedFastViTHD) -> list[tuple[str, nn.Module]]:
    """The modules whose time is shown together, by name. Of modules within each other the innermost counts."""
    found: list[tuple[str, nn.Module]] = []
    modules = iter((model.first, *model.body))
    for block in encoder_blocks(model.config, model.config.stride, model.config.stride):
        kind = block.name.rpartition(".")[2]
        name = block.name if block.stage is None else f"stage {block.stage + 1}{BESIDE_BLOCKS.get(kind, '')}"
        for module in itertools.islice(modules, block.count):
            if kind == "blocks":
                found += [(f"{name} {what}", inner) for what, inner in _of_block(module)]
            else:
                found.append((name, module))
    return found


def _of_block(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A block's mixer, and its ConvFFN with the convolution apart from the products."""
    yield "mixer", block
    for inner in block.modules():
        if isinstance(conv := getattr(inner, "conv", None), nn.Module) and hasattr(inner, "w1"):
            yield from (("ConvFFN products", inner), ("ConvFFN 7x7", conv))


def _ranges(name: str, module: nn.Module) -> tuple[Any, Any]:
    """Hooks that mark a module's call as a range of the profile; the innermost range counts."""
    open_ranges: list[Any] = []

    def enter(_module: nn.Module, _args: Any) -> None:
        open_ranges.append(record_function(PREFIX + name))
        open_ranges[-1].__enter__()

    def leave(_module: nn.Module, _args: Any, _result: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    return module.register_forward_pre_hook(enter), module.register_forward_hook(leave)


def _profiled(run: Callable[[], object], calls: int) -> EventList:
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    run()
    with profile(activities=activities) as found:
        for _ in range(calls):
            run()
        if cuda:
            torch.cuda.synchronize()
    events = found.events()
    assert events is not None
    return events


def _device_events(event: FunctionEvent) -> Times:
    """The event itself if it is of a kernel; on a CPU, of an operator."""
    if not torch.cuda.is_available():
        return [] if event.name.startswith(PREFIX) else [(event.name, float(event.self_cpu_time_total))]
    if event.device_type != DeviceType.CUDA or event.name.startswith(PREFIX):
        return []
    return [(event.name, float(event.time_range.end - event.time_range.start))]


def _caused(event: FunctionEvent) -> Times:
    """The kernels that an operator launched; on a CPU, the operator itself."""
    if not torch.cuda.is_available():
        return _device_events(event)
    return [(k.name, float(k.duration)) for k in event.kernels if not k.name.startswith(PREFIX)]


def _part_of(event: FunctionEvent) -> str:
    around: FunctionEvent | None = event
    while around is not None:
        if around.name.startswith(PREFIX):
            return around.name.removeprefix(PREFIX)
        around = around.cpu_parent
    return "other"


def write(job: Job, name: str, data: dict[str, Any]) -> None:
    """Writes a profile's file, and the fact that it is there."""
    (Path(job.out) / name).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    facts = {"file": name, "total_us": data["total_us"], "launches": data["launches"]}
    job.facts()("profile", **facts, parts=data.get("parts", []))
