"""The public checkpoint forms of FastViTHD: find them, check them, load them.

What lives here
    load          `load_checkpoint`: the whole way, and seeded weights without a source
    source, hub   a path, folder or hub id -> files on this machine
    weights_files
                  which of a folder's or repository's files are read
    tensors       named tensors out of files, a few megabytes at a time
    assignment    which tensor goes where in which model, and whether all of them fit
    forms         the five forms, and their names for the same tensors
    architecture  the config that the tensors' names and shapes speak of
    projector     the connector's tensors
    settings      what the JSON files beside the weights tell
    check         everything that is wrong with a file's tensors, in one error
    guess         what a file of another model seems to be
    messages      one-line errors
"""

from .load import Checkpoint, CheckpointInfo, load_checkpoint, load_encoder, weights_sha256

__all__ = ["Checkpoint", "CheckpointInfo", "load_checkpoint", "load_encoder", "weights_sha256"]
