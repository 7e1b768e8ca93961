"""Encoding on many machines with Ray Data; people import it as `fvexport.ray`.

| module | |
|---|---|
| `encode_images` | `EncodeImages`: a step of a pipeline, batches of images -> batches of features |
| `cells` | what a batch's column of images holds, row by row |
| `shipping` | `ship`: an artifact in Ray's object store, unpacked on nodes that do not have it |
| `connection` | starts a local cluster, or connects to one; errors in one line |
| `workers` | how many workers, and the CPUs and GPUs of each, from what the nodes have |
| `reading` | a source of images as a Ray data source |
| `work_folder` | what is done: Ray's checkpoints and data files, made consistent after any interruption |
| `counting` | images done so far, for the progress bar |
| `run` | `run_on_ray`: a source -> a Parquet dataset |
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
