"""Modules of `fvexport` whose names a folder of the repository must not have.

A folder `ray/` at the root would be imported in the place of Ray itself wherever the root is on `sys.path`: by
`python -m` there, and in Ray's workers, which get the driver's current folder. `fvexport/__init__.py` adds this folder
to the package's `__path__`, so `aliases/ray.py` is `fvexport.ray`.
"""
