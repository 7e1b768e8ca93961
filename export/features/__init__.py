"""Features of many images: where the images come from, how they are encoded, and what is written.

| module | |
|---|---|
| `source` | what a source of images is |
| `open_source` | what a user names -> a source: files, folders, lists, tables, tar files |
| `path_source`, `path_list` | image files; lists of their paths |
| `table_source`, `table_file` | images in Parquet and Arrow files |
| `tar_source`, `tar_index` | images in tar files, as WebDataset stores them |
| `shards`, `packed`, `splits` | what these share: files of many images, many short texts, ranges of images |
| `pyarrow_package` | pyarrow, which is an extra |
| `request` | what a run was asked for, as its output records it |
| `table` | the schema of a Parquet dataset of features |
| `encode` | many images -> one file or dataset, on this machine |
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
