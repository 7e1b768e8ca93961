"""What every other folder shares; imports nothing of them.

errors.py     what a user can mend, as one exception class per kind
hardware.py   the processor, its memory and the GPU of this machine
hashing.py    SHA-256 of files
output_path.py
              writes results so that an old one survives a failed run
progress.py   the callback that reports a step
versions.py   versions of installed packages
"""
