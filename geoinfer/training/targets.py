"""From instances to what the network learns: three planes that together say where one building ends and the next begins.

* `BODY`: the pixel belongs to a building.
* `CORE`: the building eroded by `core_m`, or by 40 % of its largest inner radius where it is too small for that. Cores of
  touching buildings do not touch.
* `CONTACT`: the strip between two buildings that are less than `gap_m` apart, half a metre to each side of the line that is
  equally far from both. After the contact class of the winners of the SpaceNet and DSB 2018 competitions.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

BODY, CORE, CONTACT, VALID = 1, 2, 4, 8
"""Bits of a target pixel. Without `VALID` the loss ignores it."""


def differs(instances: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(H, W) bool: a 4-neighbour has another number."""
    out = np.zeros(instances.shape, bool)
    down = instances[1:] != instances[:-1]
    right = instances[:, 1:] != instances[:, :-1]
    out[1:] |= down
    out[:-1] |= down
    out[:, 1:] |= right
    out[:, :-1] |= right
    return out


def encode_targets(
    instances: NDArray[np.int32], valid: NDArray[np.bool_], gsd: float, core_m: float = 0.9, gap_m: float = 1.5
) -> NDArray[np.uint8]:
    """(H, W) uint8 of target bits.

    Args:
        instances: (H, W) int32, 0 background, each building its own number.
        valid: (H, W) bool, pixels whose label is known.
        gsd: Metres a pixel.
        core_m: Depth of the erosion that gives the core, metres.
        gap_m: Widest gap that counts as contact, metres.
    """
    body = instances > 0
    depth = np.zeros(instances.shape, np.float32)
    contact = np.zeros(instances.shape, bool)
    core = np.zeros(instances.shape, bool)
    if body.any():
        rim = differs(instances) & body
        depth = cv2.distanceTransform((body & ~rim).astype(np.uint8), cv2.DIST_L2, 5) + 0.5
        depth[~body] = 0
        deepest = np.zeros(int(instances.max()) + 1, np.float32)
        np.maximum.at(deepest, instances[body], depth[body])
        core = body & (depth > np.minimum(core_m / gsd, 0.4 * deepest[instances]))
        # Voronoi cells of the buildings: each background pixel takes the number of its nearest building
        away, nearest = cv2.distanceTransformWithLabels(
            (~body).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        owner_of = np.zeros(int(nearest.max()) + 1, np.int32)
        owner_of[nearest[body]] = instances[body]
        owner = owner_of[nearest]
        line = differs(owner) & (away <= gap_m / 2 / gsd)
        if line.any():
            contact = cv2.distanceTransform((~line).astype(np.uint8), cv2.DIST_L2, 5) <= 0.5 / gsd
    bits = body * BODY + core * CORE + contact * CONTACT + valid * VALID
    return np.asarray(bits, np.uint8)
