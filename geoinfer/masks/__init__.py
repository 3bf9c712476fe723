"""Mask layers: what is known (water, built-up land, an area of interest) decides what stays, and each removal is counted."""

from __future__ import annotations
