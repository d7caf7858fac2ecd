"""Rows: read from Zarr or arrays, verified, scaled; and written there from tables."""
