"""Sweeps: resolutions x backends x precisions, each cell in a process of its own, into lines of JSON.

    result          `Cell`, `Result`, `Environment`, `Absent`: what a sweep writes and a report reads
    store           the files of a sweep: lines appended one by one, read back whatever killed the writer

May import everything but `cli`; is imported by `benchmarks` and `cli`.
"""
