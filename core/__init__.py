"""What every other folder shares; imports nothing of them.

cache.py      the user's cache folder
dtypes.py     number formats: their names and widths
errors.py     what a user can mend, as one exception class per kind
hardware.py   the processor, its memory and the GPU of this machine
hashing.py    SHA-256 of files
locks.py      one writer per result
phrases.py    phrases of messages: the nearest name, the first few of a list
place.py      where results are written, and how an old one survives a failed run
progress.py   the callback that reports a step
versions.py   versions of installed packages
"""
