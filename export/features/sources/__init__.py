"""Where images come from: a `Source` is a fixed order of images, each with an id.

| module | |
|---|---|
| `source` | what a source is |
| `open_source` | what a user names -> a source |
| `path_source`, `path_list` | image files; lists of their paths |
| `table_source`, `table_file` | images in Parquet and Arrow files |
| `tar_source`, `tar_index` | images in tar files, as WebDataset stores them |
| `shards`, `packed`, `splits` | what these share: files of many images, many short texts, ranges of images |
"""
