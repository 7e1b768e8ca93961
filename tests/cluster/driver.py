"""Runs `run_on_ray` in a process of its own, which tests kill: `driver.py ADDRESS ARTIFACT IMAGES COUNT OUT`.

The source repeats the files of the folder IMAGES until there are COUNT.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import listed_source

from fvexport.cluster import RayOptions, run_on_ray
from fvexport.cluster.connection import import_ray
from fvexport.export.features import FeatureForm, Item
from fvexport.export.features.request import make_request
from fvexport.export.runtime import Encoder


def main() -> None:
    """Prints how many images were encoded, and how many not."""
    address, artifact, images, count, out = sys.argv[1:]
    import_ray().cloudpickle.register_pickle_by_value(listed_source)
    files = sorted(Path(images).iterdir())
    source = listed_source.Listed(tuple(Item(f"{i:06d}", files[i % len(files)]) for i in range(int(count))))
    encoder, form = Encoder(artifact), FeatureForm(form="parquet", shard_rows=100)
    request = make_request(encoder.artifact, encoder.preprocessor, encoder.chosen.name, source, form, "ray")
    report = run_on_ray(source, Path(artifact), request, Path(out), RayOptions(address=address))
    print(report.encoded, report.failed_count)  # noqa: T201


if __name__ == "__main__":
    main()
