"""`fvexport doctor`: checks what this machine can run, and prints the commands that install the rest."""

from __future__ import annotations

import click

from .options import json_option, verbose_option


@click.command("doctor")
@json_option
@verbose_option
def doctor(as_json: bool) -> None:
    """Show what this machine can do, and how to install the rest."""
    from . import printing
    from .doctor_checks import examine
    from .progress_bar import progress_bar

    with progress_bar() as progress:
        found = examine(progress)
    if as_json:
        printing.print_json(found.to_dict())
        return

    def size(count: int | None, what: str) -> str:
        return "unknown" if count is None else f"{printing.size(count)} {what}"

    printing.table(
        ("package", "version", "note"),
        [(p.name, p.version or "-", p.note) for p in found.packages],
        title="Packages", numbers_from=3,
    )  # fmt: skip
    cpu = found.cpu
    quota = f", a quota of {cpu['quota']:g}" if "quota" in cpu else ""
    limit = f", of a limit of {printing.size(found.memory_limit_bytes)}" if found.memory_limit_bytes else ""
    printing.facts(
        [
            ("CPU", f"{cpu['model'] or 'unknown'}, {cpu['usable']} of {cpu['cores']} cores{quota}"),
            ("threads", found.threads),
            ("its vectors", ", ".join(cpu["features"]) or "no AVX-512 or AMX seen"),
            ("8-bit products", "saturate: no VNNI" if found.products_saturate else "exact"),
            ("--int8 is for", found.int8_target),
            ("memory", size(found.memory_bytes, f"available{limit}")),
            ("disk", size(found.disk_bytes, "free here")),
            ("GPU", ", ".join(found.gpus) or "none found"),
            ("onnxruntime", ", ".join(found.providers) or "no providers"),
            ("Hugging Face", "offline (HF_HUB_OFFLINE)" if found.hub_offline else "online"),
        ],
        title="Machine",
    )
    printing.table(
        ("target", "precisions", "here"),
        [(t.name, " ".join(t.precisions), "yes" if t.why_not is None else f"no: {t.why_not}") for t in found.targets],
        title="Targets", numbers_from=3,
    )  # fmt: skip
    printing.facts(found.commands.items(), title="Commands")
    printing.notices(found.problems)
    for command in found.installs:
        printing.write_line(f"to install: {command}")
