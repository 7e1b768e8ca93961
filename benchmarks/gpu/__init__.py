"""Proves the GPU path on one machine, in one command: `proof.py`. The other modules are its parts."""
