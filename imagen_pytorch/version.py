"""The version of the package, readable without importing anything else."""

__version__ = "3.0.0"
