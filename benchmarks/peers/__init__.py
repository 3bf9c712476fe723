"""Peers on the same raster with the same weights: `install.sh`, one script a peer, and `compare`."""
