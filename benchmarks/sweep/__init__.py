"""Sweeps: resolutions x backends x precisions, each cell in a process of its own, into lines of JSON.

    result          `Cell`, `Result`, `Environment`, `Absent`: what a sweep writes and a report reads
    store           the files of a sweep: lines appended one by one, read back whatever killed the writer
    sweep_options   the options of a sweep, and how cells are timed
    plan            which cells there are, in which order, and which backends have none here
    run             `run_sweep`: makes files, loads cells, times them in rounds, writes each as it ends
    round_group, windows
                    the rounds of one resolution beside a reference cell; from windows to figures
    cell_files, outcome
                    what cells need to run; from a cell's windows to its line
    environment     what a sweep runs on
    worker_process  a process that answers jobs, under a clock and a memory limit

In the process of a cell, which alone imports torch:

    worker          jobs in, answers out
    file_builder    reference features, artifacts, peers' files
    cell_runner     one cell: loaded, compared, timed (loading, timing, and prefilling for the time to first token)
    process_memory  resident memory, and the switches by which the system spares the others

May import everything but `cli`; is imported by `benchmarks.report` and `cli`.
"""
