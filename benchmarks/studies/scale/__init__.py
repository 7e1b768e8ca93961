"""Time, cost, repeated work and the best shard size for 10^6 to 10^9 images on 1 to 1000 GPUs.

What lives here
    rates       what a machine does per second, and how often it is lost: measured or assumed
    closed      the closed form, which answers at once for any number of images
    events      the same as a simulation of every worker, for small numbers and to check the closed form
    page        the tables of docs/scale.md
    command     `python -m fvexport.benchmarks.studies.scale`
"""
