"""Features of many images: where the images come from, how they are encoded, and what is written.

| module | |
|---|---|
| `sources/` | what a user names -> images in a fixed order |
| `feature_form` | what is written of each image |
| `request` | what a run was asked for, as its output records it |
| `run` | what a run does around its work: it goes on, or finds that all is done |
| `encode` | the work on this machine |
| `decode`, `writer`, `pace` | images decoded ahead, features written behind, and how fast it goes |
| `working_folder`, `pending` | what is kept of an unfinished run |
| `output`, `output_shards`, `safetensors_file`, `table` | the output: a file, or a folder of Parquet or NumPy shards |
| `existing` | what stands at an output already |
| `pyarrow_package` | pyarrow, which is an extra |
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
