"""The command line: verbs, printing and exit statuses, and no logic of its own.

Nothing here imports torch, rasterio or Dask until a verb needs them, so that `geoinfer --help` answers at once.
"""
