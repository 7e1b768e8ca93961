"""What a run found, as a table for one screen: targets beside measurements beside predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import facts
from .facts import Fact
from .scope import COMPILED, EAGER, OURS, TUNED

WIDTH = 118
SHOWN = 6
"""Problems of a kind that are printed; all of them are in the results."""

MAX_MS, MIN_SPEEDUP, MIN_IMAGES = 2.0, 1.3, 4000.0
"""Targets on an H100 in float16: milliseconds at 1024 b1, times the best mode of torch.compile there, and images per
second at 256 b8."""
OK = "ok"


def correct(found: Sequence[Fact]) -> bool:
    """Whether all operators and all models were checked, and none is wrong."""
    if any(f["kind"] in ("operator-problem", "operators-skipped", "models-skipped", "warm-problem") for f in found):
        return False
    models, operators = facts.of(found, "model"), facts.of(found, "operators")
    unfinished = [f for f in facts.of(found, "operators-done") if not f["whole"]]
    ended = {f["name"]: f["status"] for f in facts.of(found, "phase")}
    asked = [ended[name] == OK for name in ("operators", "models") if name in ended]
    if not asked or not all(asked) or unfinished or any(f["problem"] for f in models):
        return False
    return ("operators" not in ended or bool(operators)) and ("models" not in ended or bool(models))


def table(found: Sequence[Fact]) -> str:
    """The report; parts that a run did not have are left out."""
    lines: list[str] = []
    for part in (_head, _phases, _correctness, _latencies, _targets, _toggles, _profiles, _kernels):
        try:
            lines += part(found)
        except (KeyError, TypeError, ValueError) as error:  # facts of another version: the others are still shown
            lines.append(f"{part.__name__.strip('_')}: cannot be shown ({type(error).__name__}: {error})")
    return "\n".join(line[:WIDTH] for line in lines)


def _head(found: Sequence[Fact]) -> Iterator[str]:
    for fact in facts.of(found, "environment")[-1:]:
        gpu, versions = fact.get("gpu", {}), fact.get("versions", {})
        name = gpu.get("name") or f"no GPU, {fact['cpu']}"
        parts = [name, *(f"{n} {versions[n]}" for n in ("torch", "triton") if n in versions), str(fact["date"])]
        yield "== " + ", ".join(parts) + (" (dry run: nothing here is a result)" if fact.get("dry") else "")
    for fact in facts.of(found, "ceilings")[-1:]:
        flops = f"{fact['dtype']} products {fact['matmul_flops'] / 1e12:.3g} TFLOP/s"
        yield f"   measured ceilings: copy {fact['copy_bytes_s'] / 1e12:.3g} TB/s, {flops}"


def _phases(found: Sequence[Fact]) -> Iterator[str]:
    ended = facts.of(found, "phase")
    bad = [f"{f['name']}: {f['status']}" for f in ended if f["status"] != OK]
    if ended:
        seconds = max(f.get("t", 0.0) for f in found)
        head = f"phases       {len(ended) - len(bad)} of {len(ended)} ok in {seconds:.0f} s"
        yield from _wrapped(head, bad) if bad else [head]


def _correctness(found: Sequence[Fact]) -> Iterator[str]:
    groups, problems = facts.of(found, "operators"), facts.of(found, "operator-problem")
    models = facts.of(found, "model")
    wrong = [f for f in models if f["problem"]]
    parts = []
    if groups or problems:
        total = sum(f["checks"] for f in groups)
        parts.append(f"operators: {total} checks, {len(problems)} wrong")
    if models:
        parts.append(f"models: {len(models)} checks, {len(wrong)} wrong")
    compiled = facts.of(found, "warm")
    if compiled:
        parts.append(
            f"{sum(f['kernels'] for f in compiled)} kernels compiled, {sum(f['failed'] for f in compiled)} not"
        )
    if parts:
        yield "correct      " + "; ".join(parts)
    for fact in facts.of(found, "left-out"):
        yield f"             not used in what follows: {', '.join(fact['kernels'])}"
    skipped = [f for f in found if f["kind"] in ("operators-skipped", "models-skipped")]
    if skipped:
        yield f"             {len(skipped)} groups were not checked: no time left"
    shown = [f"{f['op']} {f['kernel']} {f.get('dtype', '')} {f['what']}: {f['problem']}" for f in problems]
    shown += [f"{f['name']} {f['dtype']} {f['size']}: {f['problem']}" for f in wrong]
    shown += [f"{f['kernel']} {f['dtype']}: {f['problem']}" for f in facts.of(found, "warm-problem")]
    yield from (f"  WRONG      {text}" for text in shown[:SHOWN])
    if len(shown) > SHOWN:
        yield f"             and {len(shown) - SHOWN} more"


# --- latency --------------------------------------------------------------------------------------------


def times(found: Sequence[Fact]) -> dict[tuple[str, str], float]:
    """Milliseconds by name and size: the main dtype's latencies, the fastest of several runs."""
    rows = facts.of(found, "latency")
    main = rows[0]["dtype"] if rows else ""
    best: dict[tuple[str, str], float] = {}
    for row in rows:
        if row["dtype"] == main:
            key = (row["name"], row["size"])
            best[key] = min(row["ms"], best.get(key, row["ms"]))
    return best


def predictions(found: Sequence[Fact]) -> dict[tuple[str, str], float]:
    """Predicted milliseconds by name and size."""
    return {(f["name"], f["size"]): f["ms"] for f in facts.of(found, "predicted")}


def _latencies(found: Sequence[Fact]) -> Iterator[str]:
    measured, expected = times(found), predictions(found)
    if not measured:
        return
    sizes = list(dict.fromkeys(size for _, size in measured))
    rows: list[tuple[str, Mapping[str, float]]] = []
    for name in dict.fromkeys([OURS, TUNED, EAGER, *(name for name, _ in measured)]):
        own = {size: ms for (other, size), ms in measured.items() if other == name}
        if not own:
            continue
        guess = {size: expected[name, size] for size in sizes if (name, size) in expected}
        if guess:
            rows.append((f"{name}, predicted", guess))
        rows.append((name, own))
    yield f"{'latency, ms':38s}" + "".join(f"{size:>12s}" for size in sizes)
    for name, values in rows:
        yield f"  {name:36s}" + "".join(f"{values[size]:12.3f}" if size in values else f"{'':12s}" for size in sizes)
    ratio = {
        size: best / ms for size in sizes if (best := rival_ms(measured, size)) and (ms := ours_ms(measured, size))
    }
    if ratio:
        line = "".join(f"{ratio[size]:11.2f}x" if size in ratio else f"{'':12s}" for size in sizes)
        yield f"  {'best torch.compile over ours':36s}" + line


def ours_ms(measured: Mapping[tuple[str, str], float], size: str) -> float | None:
    """The better of ours and ours tuned, None if neither was timed."""
    own = [measured[name, size] for name in (OURS, TUNED) if (name, size) in measured]
    return min(own, default=None)


def rival_ms(measured: Mapping[tuple[str, str], float], size: str) -> float | None:
    """The fastest mode of torch.compile, None if none was timed."""
    rivals = [ms for (name, other), ms in measured.items() if other == size and name.startswith(COMPILED)]
    return min(rivals, default=None)


def _targets(found: Sequence[Fact]) -> Iterator[str]:
    measured = times(found)
    one, eight = ours_ms(measured, "1024 b1"), ours_ms(measured, "256 b8")
    rival = rival_ms(measured, "1024 b1")
    parts = []
    if one is not None:
        parts.append(_target("1024 b1", f"{one:.3f} ms", one <= MAX_MS, f"<= {MAX_MS} ms"))
    if one is not None and rival is not None:
        parts.append(_target("", f"{rival / one:.2f}x torch.compile", rival / one >= MIN_SPEEDUP, f">= {MIN_SPEEDUP}x"))
    if eight is not None:
        images = 8e3 / eight
        parts.append(_target("256 b8", f"{images:.0f} images/s", images >= MIN_IMAGES, f">= {MIN_IMAGES:.0f}"))
    if parts:
        yield from _wrapped("targets", parts)


def _target(where: str, value: str, met: bool, wanted: str) -> str:
    return f"{where} {value} ({wanted}: {'met' if met else 'MISSED'})".strip()


def _toggles(found: Sequence[Fact]) -> Iterator[str]:
    """What each kernel and mode is worth: milliseconds more without it (or with it, if it is off by default)."""
    rows, expected = facts.of(found, "toggle"), predictions(found)
    for size in dict.fromkeys(str(f["size"]) for f in rows):
        cells = []
        for row in (f for f in rows if f["size"] == size):
            change = row["ms"] - row["ms"] * row["times_baseline"]  # both timed in the same rounds
            guess, own = expected.get((str(row["name"]), size)), expected.get((OURS, size))
            extra = "" if guess is None or own is None else f" ({guess - own:+.3f})"
            cells.append(f"{row['name']} {change:+.3f}{extra}")
        yield from _wrapped(f"switched, ms at {size} (predicted)", cells)
    for fact in (f for f in found if f["kind"] in ("toggle-failed", "latency-failed")):
        yield f"  FAILED     {fact['name']} at {fact['size']}: {fact['problem']}"


def _wrapped(title: str, cells: Sequence[str]) -> Iterator[str]:
    line = f"{title}: "
    for cell in cells:
        if len(line) + len(cell) + 2 > WIDTH:
            yield line.rstrip()
            line = "    "
        line += cell + "; "
    yield line.rstrip("; ")


def _profiles(found: Sequence[Fact]) -> Iterator[str]:
    for fact in facts.of(found, "profile"):
        parts = sorted(fact["parts"], key=lambda part: -float(part["us"]))[:5]
        shown = ", ".join(f"{part['part']} {part['us']:.0f}" for part in parts)
        yield f"profile, us  {fact['file']}: {fact['total_us']:.0f} in {fact['launches']:.0f} kernels  {shown}"


def _kernels(found: Sequence[Fact]) -> Iterator[str]:
    """Kernels that the policy chose and that are slower than PyTorch, or than another kernel."""
    rows = [f for f in facts.of(found, "kernel") if f["chosen"] is not None and isinstance(f["speedup"], float)]
    slower = sorted((f for f in rows if f["speedup"] < 1), key=lambda f: float(f["speedup"]))
    beaten = [f for f in rows if f["fastest_kernel"] != f["chosen"] and f["chosen"] in f["times_ms"]]
    beaten.sort(key=lambda f: -_gain_ms(f))
    if rows:
        names = f"{len(slower)} slower than PyTorch, {len(beaten)} slower than another kernel"
        yield f"kernels      {len(rows)} timed that the policy chose: {names}"
    for f in slower[:SHOWN]:
        yield f"  SLOWER     {_call(f)} {f['speedup']:.2f}x {f['best_rival']}"
    for f in beaten[:SHOWN]:
        chosen, other = f["times_ms"][f["chosen"]], f["times_ms"][f["fastest_kernel"]]
        yield f"  FASTER     {_call(f)} {1e3 * chosen:.1f} us, {f['fastest_kernel']} {1e3 * other:.1f} us"


def _gain_ms(row: Fact) -> float:
    """Milliseconds of a call of the encoder that the fastest kernel would save."""
    return float(row["count"] * (row["times_ms"][row["chosen"]] - row["times_ms"][row["fastest_kernel"]]))


def _call(row: Fact) -> str:
    sizes = " ".join(f"{name}={value}" for name, value in row["sizes"].items())
    return f"{row['part']} {sizes} {row['chosen']}"


def kernel_facts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `benchmarks.studies.kernels` in short, for the report: one for each operator and size."""
    names = (
        "op", "part", "sizes", "resolution", "batch", "count", "chosen", "times_ms", "best_rival", "fastest_kernel",
        "speedup", "wrong",
    )  # fmt: skip
    return [{name: row.get(name) for name in names} for row in rows if row.get("kind") == "operator"]
