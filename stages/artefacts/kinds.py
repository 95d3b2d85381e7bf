"""The kinds of artefact, as data: which columns each holds, with dtype, shape, unit and meaning (docs/design.md, 6).

A size that varies is a letter: R rows, F frames, J joints, V vertices, H and W heatmap pixels; "..." stands for any
further axes. A dtype may name choices ("f2|f4"); "str" is UTF-8. Columns that are not listed belong in group `extra`.
"""

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
    Column("joints/confidence", "f4", ("R", "J"), "", "the network's confidence in each joint, 0 to 1"),
)
VERTEX_COLUMN = Column("vertices/xyz", "f4", ("R", "V", 3), "m", "mesh in the OpenCV camera frame", optional=True)

SCHEMA = "1.0"  # major.minor: another minor only adds optional columns

OK, FAILED, SKIPPED = 0, 1, 2  # the values of every `status`
K_DEFAULT, K_EXIF, K_USER = 0, 1, 2  # the values of `frames/K_source`

FRAMES = (
    Column(
        "frames/name", "str", ("F",), "", "path relative to the root, '/' between folders; video frames: path#index"
    ),
    Column("frames/size", "i4", ("F", 2), "px", "width, height after EXIF orientation; 0, 0 when unreadable"),
    Column("frames/K", "f4", ("F", 3, 3), "px", "intrinsics; pixel (0, 0) is the centre of the first pixel"),
    Column("frames/K_source", "u1", ("F",), "", "0 stated default, 1 EXIF, 2 given by the user"),
    Column("frames/time", "f8", ("F",), "s", "presentation time of a video frame, NaN for photos"),
    Column("frames/source", "i4", ("F",), "", "which video (0, 1, ...) the frame belongs to, -1 for photos"),
    Column("frames/view", "i4", ("F",), "", "which camera of a multi-view take, else 0"),
    Column("frames/status", "u1", ("F",), "", "0 ok, 1 failed, 2 skipped"),
    Column("frames/error", "str", ("F",), "", "why the frame failed, else empty"),
    Column("frames/file", "str", ("F",), "", "fingerprint of the image or video file", optional=True),
)
ROWS = (
    Column("rows/frame", "i4", ("R",), "", "index into frames"),
    Column("rows/box", "f4", ("R", 4), "px", "x1, y1, x2, y2 in the image"),
    Column("rows/score", "f4", ("R",), "", "the detector's confidence in the person"),
    Column("rows/track", "i4", ("R",), "", "same person over time, -1 none"),
    Column("rows/status", "u1", ("R",), "", "0 ok, 1 failed, 2 skipped; failed and skipped rows are NaN"),
    Column("rows/error", "str", ("R",), "", "why the row failed, else empty"),
)
ROOT_ATTRS = {
    "kind": "hmr/<kind>",
    "schema": "major.minor; a reader accepts every minor of its major",
    "stage": "the command that made the file",
    "hmr_version": "its version",
    "params": "JSON: the settings of the stage",
    "inputs": "JSON list of {role, kind, fingerprint}",
    "model": "JSON {name, sha256, licence} or null",
    "fingerprint": "sha256 over kind, schema, stage, params, rows, inputs' fingerprints and model",
    "rows_fingerprint": "sha256 over frame names, sizes, and each row's frame and box",
    "root": "folder that frame names are relative to, relative to the file; absent when unknown",
    "batch_size": "rows at a time, noted only where memory ran out",
    "best_detector": "detections: the best detector that hmr knew for the device; absent where it was not compared",
    "detector_is_best_available": "detections: whether that one was used; absent like best_detector",
    "created": "UTC",
    "command": "as typed",
}  # of these only kind and schema are required
# What a table made by hand may leave out, and what it then gets.
FRAME_DEFAULTS = {"time": float("nan"), "source": -1, "view": 0, "status": OK, "error": "", "K_source": K_DEFAULT}
ROW_DEFAULTS = {"score": 1.0, "track": -1, "status": OK, "error": ""}


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of artefact. `nan_ok`: columns that may be non-finite in a row that is ok. `any_group`: free columns."""

    name: str
    meaning: str
    columns: tuple[Column, ...]
    group_attrs: tuple[tuple[str, str, str], ...]  # (group, attribute, meaning); required where the group is there
    nan_ok: tuple[str, ...] = ()
    any_group: str = ""


_BODY_ATTRS = (
    ("smpl", "body_model", "which body the parameters belong to: a name and its sha256"),
    ("smpl", "gender", "neutral, female or male"),
    ("joints", "joints", "JSON list of the J joint names"),
)
KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "detections",
            "people in images: boxes, 2D keypoints, scores, tracks, cameras",
            (
                Column("keypoints/xy", "f4", ("R", "J", 2), "px", "joints in the image"),
                Column("keypoints/score", "f4", ("R", "J"), "", "see score_definition; 0 = not visible"),
            ),
            (
                ("keypoints", "joints", "JSON list of the J joint names"),
                ("keypoints", "joint_set", "name of the joint set"),
                ("keypoints", "score_definition", "what the scores mean"),
            ),
            nan_ok=("keypoints/xy", "keypoints/score"),
        ),
        Kind(
            "heatmaps",
            "one stack of Gaussian heatmaps per row, in crop pixels",
            (
                Column("heatmaps/value", "f2", ("R", "J", "H", "W"), "", "Gaussian around each visible joint, peak 1"),
                Column("heatmaps/crop", "f4", ("R", 2, 3), "px", "affine from image to heatmap pixels"),
                Column("heatmaps/xy", "f4", ("R", "J", 2), "px", "joints in heatmap pixels", optional=True),
                Column("heatmaps/mask", "u1", ("R", "J"), "", "1 where the joint is visible", optional=True),
            ),
            (("heatmaps", "joints", "JSON list of the J joint names"), ("heatmaps", "sigma", "heatmap pixels")),
        ),
        Kind("features", "what a network extracted: one array per extractor", (), (), any_group="features"),
        Kind(
            "meshes",
            "bodies: SMPL parameters or vertices, joints, confidence",
            (
                *(dataclasses.replace(c, optional=True) for c in (*SMPL_COLUMNS, *JOINT_COLUMNS)),
                VERTEX_COLUMN,
            ),
            _BODY_ATTRS,
        ),
        Kind(
            "scores",
            "errors against ground truth, NaN where there is none",
            (
                Column("errors/mpjpe", "f4", ("R",), "mm", "mean per-joint position error, roots aligned"),
                Column("errors/pa_mpjpe", "f4", ("R",), "mm", "the same after similarity alignment"),
                Column("errors/mpve", "f4", ("R",), "mm", "mean per-vertex error", optional=True),
                Column("errors/occ_mpjpe", "f4", ("R",), "mm", "mean over hidden joints", optional=True),
                Column("errors/occ_pa_mpjpe", "f4", ("R",), "mm", "hidden joints, similarity aligned", optional=True),
                Column("errors/acceleration", "f4", ("R",), "mm/frame^2", "acceleration error", optional=True),
                Column("errors/error_2d", "f4", ("R",), "px", "labelled joints, body projected", optional=True),
                Column("errors/pck", "f4", ("R",), "", "labelled joints within a tenth of the box", optional=True),
                Column("errors/per_joint", "f4", ("R", "J"), "mm", "error of each joint, roots aligned", optional=True),
                Column("errors/visible", "u1", ("R", "J"), "", "1 where the joint is visible", optional=True),
            ),
            (),
            nan_ok=tuple(
                f"errors/{name}"
                for name in (
                    *("mpjpe", "pa_mpjpe", "mpve", "occ_mpjpe", "occ_pa_mpjpe", "acceleration"),
                    *("error_2d", "pck", "per_joint"),
                )
            ),
        ),
    )
}


def required_columns(kind: str, **sizes: int) -> tuple[Column, ...]:
    """Every column of `kind`, none optional, for a stage that writes them all; `sizes` replace letters in shapes."""
    return tuple(
        dataclasses.replace(
            c, shape=tuple(sizes.get(s, s) if isinstance(s, str) else s for s in c.shape), optional=False
        )
        for c in KINDS[kind].columns
    )


def identify_foreign(head: bytes) -> tuple[str, str]:
    """What a file that is not HDF5 is, by its first bytes, and what to do with it."""
    detect = "hmr detect finds the people in it"
    for magic, what, hint in (
        ((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*"), "an image", detect),
        ((b"\x1aE\xdf\xa3",), "a video", detect),
        ((b"PK\x03\x04",), "a zip, npz or PyTorch file", "hmr import amass for bodies, hmr checkpoint for weights"),
        ((b"{", b"["), "JSON", "hmr import coco (or openpose, boxes) makes an artefact of it"),
        ((b"\0" * 8,), "zero bytes, never written", "make it again"),
    ):
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(magic):
            return what, hint
    if head[4:8] == b"ftyp" or head[:4] == b"RIFF":
        return "a video or image", detect
    return "", "give a file that hmr has made, such as people.detections.h5"
