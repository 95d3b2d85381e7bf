"""Data sets by name, one line each. licensed.py opens them, base.py is their contract."""

from __future__ import annotations

# name -> module of this folder that reads the original layout
LAYOUTS = {
    "3dpw": "threedpw",
    "3dpw-oc": "threedpw",
    "3dpw-pc": "threedpw",
    "3dpw-crowd": "threedpw",
    "3doh": "threedoh",
    "panoptic-haggling": "panoptic",
    "panoptic-mafia": "panoptic",
    "panoptic-ultimatum": "panoptic",
    "panoptic-pizza": "panoptic",
    "emdb": "emdb",
    "h36m": "h36m",
    "h36m-p2": "h36m",
    "h36m-multiview": "h36m",
    "mannequin": "prohmr_npz",
    "ochuman": "ochuman_crowdpose",
    "crowdpose": "ochuman_crowdpose",
}
