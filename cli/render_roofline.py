"""What `fvexport inspect --roofline` prints."""

from __future__ import annotations

from ..export.roofline import Floor, Roofline, Work
from .printing import facts, notices, size, table

BOUNDS = {"memory": "memory", "tensor_cores": "tensor", "cuda_cores": "CUDA"}
"""Words for what bounds a kernel."""


def roofline(report: Roofline) -> None:
    """The rates, then for each resolution the blocks and what fusion removes, and where a fused MLP ends to win."""
    gpu = report.gpu
    facts(
        [
            ("variant", report.variant),
            ("GPU", gpu.name),
            ("tensor cores", f"{gpu.tflops:g} TFLOP/s"),
            ("CUDA cores", "not counted" if gpu.fp32_tflops is None else f"{gpu.fp32_tflops:g} TFLOP/s in FP32"),
            ("memory", f"{gpu.bandwidth:g} GB/s"),
            ("precision", report.precision),
            ("batch", report.batch),
        ],
        title="roofline",
    )
    for floor in report.floors:
        _blocks(floor)
        _removals(floor)
    notices(
        [
            f"from C = {report.mlp_break_even:.0f} on a fused MLP removes nothing from the floor of large images: both "
            "its products are bound by their multiply-adds",
            f"up to C = {report.mlp_max_dim} it has room on a multiprocessor",
        ]
    )


def _blocks(floor: Floor) -> None:
    def row(name: str, gmacs: float, unfused: Work, fused: Work) -> tuple[str, ...]:
        numbers = (gmacs, unfused.bytes / 1e6, fused.bytes / 1e6, unfused.us, fused.us)
        return (name, *map(_short, numbers), BOUNDS[fused.bound])

    rows = [row(f"{b.count} × {b.name}" if b.count > 1 else b.name, b.gmacs, b.unfused, b.fused) for b in floor.blocks]
    total = sum(block.count * block.gmacs for block in floor.blocks)
    rows.append(row(f"all {sum(block.count for block in floor.blocks)}", total, floor.unfused, floor.fused))
    height, width = floor.resolution
    title = (
        f"{height}x{width}: {floor.gmacs:.2f} GMAC per image, and {floor.attention_gmacs:.2f} in attention's products"
    )
    table(("block, each", "GMAC", "MB", "fused", "µs", "fused", "bound"), rows, title=title)


def _removals(floor: Floor) -> None:
    def row(fusion: str, where: str, dim: object, kernels: int, count: int, us: float) -> tuple[object, ...]:
        return fusion, where, dim, kernels, size(count), _short(us), f"{100 * us / floor.unfused.us:.1f} %"

    rows = [row(r.fusion, r.where, r.dim, r.kernels, r.bytes, r.us) for r in floor.removals]
    before, after = floor.unfused, floor.fused
    rows.append(row("all", "", "", before.kernels - after.kernels, before.bytes - after.bytes, before.us - after.us))
    header = ("fusion", "where", "C", "kernels", "bytes", "µs", "share")
    height, width = floor.resolution
    table(header, rows, title=f"{height}x{width}: what each fusion removes, on top of those above it", numbers_from=2)


def _short(number: float) -> str:
    return f"{number:.2f}" if number < 10 else f"{number:.1f}" if number < 1000 else f"{number:.0f}"
