"""The papers' evaluation protocols as data: which joints, from which regressor, relative to which root."""

from __future__ import annotations

import dataclasses

from stages.errors import UsageError
from stages.keypoints import joint_sets

COMMON14 = joint_sets.get("lsp14")  # the 14 joints of the field; in H36M-17 all but pelvis, spine and nose
HIPS = ("left_hip", "right_hip")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """joint_set: regressed from both meshes · joints: those that are scored · root: joints whose mean is subtracted ·
    vertex_root: the same for vertices ("smpl24" = SMPL's own pelvis) · gender of the ground truth · matching: "rows",
    the recovered body of the same row, or "nearest", of the bodies in the image the one with the smallest MPJPE."""

    name: str
    joint_set: str
    joints: tuple[str, ...]
    root: tuple[str, ...]
    vertex_root: str
    gender: str
    note: str
    matching: str = "rows"

    def line(self) -> str:
        """The protocol in one line, as printed under every table."""
        if not self.joints:
            return f"protocol {self.name}: {self.note}"
        root = " and ".join(name.replace("_", " ") for name in self.root)
        matched = "" if self.matching == "rows" else f", matched by {self.matching}"
        return (
            f"protocol {self.name}: {len(self.joints)} joints of {self.joint_set}, root {root}, vertices minus "
            f"{self.vertex_root}, {self.gender} ground truth{matched}, means over rows, mm. {self.note}"
        )


PROTOCOLS = {
    each.name: each
    for each in (
        Protocol("body", "lsp14", COMMON14, HIPS, "smpl24 pelvis", "annotated", "The body's own regressors."),
        Protocol(
            "dpmesh",
            "h36m17",
            COMMON14,
            ("pelvis",),
            "smpl24 pelvis",
            "gendered",
            "DPMesh, JOTR, 3DCrowdNet: H36M regressor on both meshes.",
        ),
        Protocol(
            "scorehmr",
            "j19",
            (*COMMON14[:-1], "head"),
            ("pelvis",),
            "smpl24 pelvis",
            "gendered",
            "ScoreHMR, ProHMR: SMPL_to_J19 on both meshes, MPII pelvis, Human3.6M's head.",
        ),
        Protocol(
            "postometro",
            "h36m17",
            COMMON14,
            ("pelvis",),
            "h36m17 pelvis",
            "gendered",
            "PostoMETRO, FastMETRO: vertices minus the H36M pelvis.",
        ),
        Protocol("emdb", "smpl24", joint_sets.get("smpl24"), HIPS, "hips", "gendered", "EMDB: 24 SMPL joints."),
        Protocol(
            "neutral",
            "h36m17",
            COMMON14,
            ("pelvis",),
            "smpl24 pelvis",
            "neutral",
            "As dpmesh, but the ground truth posed with the neutral body: another number.",
        ),
        Protocol(
            "h36m",
            "h36m17",
            COMMON14,
            ("pelvis",),
            "smpl24 pelvis",
            "marker",
            "Human3.6M: H36M regressor on the prediction.",
        ),
        Protocol(
            "panoptic",
            "h36m17",
            joint_sets.get("h36m17"),
            ("pelvis",),
            "smpl24 pelvis",
            "3D joint",
            "CRMH, ROMP, 3DCrowdNet, JOTR, DPMesh: joints that are annotated.",
            matching="nearest",
        ),
        Protocol(
            "keypoints",
            "coco17",
            (),
            (),
            "smpl24 pelvis",
            "2D",
            "Labelled joints against the projected body, px; PCK: within a tenth of the box's longer side.",
        ),
    )
}


def protocol_of(name: str) -> Protocol:
    """The protocol of that name. Raises UsageError, naming all of them."""
    if name not in PROTOCOLS:
        raise UsageError(f"no protocol {name!r}", f"choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
