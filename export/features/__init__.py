"""Features of many images: where the images come from, how they are encoded, and what is written.

| module | |
|---|---|
| `source` | what a source of images is |
| `request` | what a run was asked for, as its output records it |
| `table` | the schema of a Parquet dataset of features |
| `encode` | many images -> one file or dataset, on this machine |
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
