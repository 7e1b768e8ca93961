"""Measurements: what resolutions, precisions and backends cost on the user's machine and data, and what claims rest on.

What lives here
    sweep/      `fvexport sweep`: resolutions x backends x precisions, each cell in its own process
    peers/      the plain ways beside ours in a sweep
    report/     `fvexport report`: the page that results of sweeps become, and differences between runs
    tasks/      `fvexport ask` and `eval`: a conversation, a batch, a profile; VQA, captions and retrieval on own data
    studies/    what claims in the docs rest on, each with the command that reproduces it; the GPU's proof among them
    results/    measurements as JSON, with the environment they were taken in
    bootstrap, json_lines
                resamples of what was measured; files of JSON lines that survive a kill

May import everything but `cli`; is imported by `cli` alone. Only tests import `studies`.
"""
