"""Dask: which cluster, who works there, and the one mapper.  The only room that imports Dask.

The others take `Client` as a type from here.
"""

from distributed import Client

__all__ = ["Client"]
