"""The largest sizes of files and engines, for what makes them and for what reads them."""

MAX_BATCH = 1024
"""Most images of one call."""
