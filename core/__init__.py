"""What every other folder shares; imports nothing of them.

cache.py      the user's cache, and whether its files can be trusted
cleanup.py    what is undone if a signal ends the process
dtypes.py     number formats: their names and widths
errors.py     what a user can mend, as one exception class per kind
hardware.py   the processor, its memory and the GPU of this machine
hashing.py    SHA-256 of files
held_folder.py
              notices that a folder was replaced
home.py       paths that begin with `~`
locks.py      one writer per result
output_path.py
              writes results so that an old one survives a failed run
plain_text.py texts without control characters and escape sequences
phrases.py    phrases of messages: the nearest name, counts, the first few of a list
progress.py   the callback that reports a step
records.py    files of JSON as typed structs, which keep what a newer version wrote
temporary.py  temporary folders
verdict/      figures of features against the reference's, what is allowed, and the verdict
versions.py   versions of installed packages
"""
