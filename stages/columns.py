"""Column: one array of an artefact, as data. Networks and verbs declare with it what they write."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Column:
    """`name` "group/array" · `dtype` a numpy code · `shape` row axis first, strings where it varies: ("R", "J", 3)."""

    name: str
    dtype: str
    shape: tuple[str | int, ...]
    unit: str = ""
    meaning: str = ""
    optional: bool = False


# What every recoverer and refiner writes (docs/design.md, section 6).
SMPL_COLUMNS = (
    Column("smpl/global_orient", "f4", ("R", 3), "rad", "axis-angle of the root, camera frame"),
    Column("smpl/body_pose", "f4", ("R", 23, 3), "rad", "axis-angle of joints 1 to 23, relative to the parent"),
    Column("smpl/betas", "f4", ("R", 10), "", "shape coefficients, unit variance"),
    Column("smpl/transl", "f4", ("R", 3), "m", "translation, OpenCV camera frame"),
)
JOINT_COLUMNS = (
    Column("joints/xyz", "f4", ("R", "J", 3), "m", "joints in the OpenCV camera frame"),
    Column("joints/confidence", "f4", ("R", "J"), "", "how sure the network is of each joint, 0 to 1"),
)
VERTEX_COLUMN = Column("vertices/xyz", "f4", ("R", "V", 3), "m", "mesh in the OpenCV camera frame", optional=True)
