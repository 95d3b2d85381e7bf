"""The settings of every stage and training, on one page. This module imports neither torch nor numpy.

The settings of a stage are a frozen dataclass whose fields are made by `param`. The command line turns every field into
a flag (`min_score` -> `--min-score`), the artefact stores them as sorted JSON, `--params-from` reads them back.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from stages.errors import InputError, UsageError
from stages.models.tables import DETECTORS

MAX_GAP = 3.0  # s without being seen after which a tracker forgets a person
MAX_PIXELS = 100_000_000  # larger images are refused before they are decoded
EXAMPLE = 'for example {"min_score": 0.3}'


def param(default: Any, help: str, *, unit: str = "") -> Any:
    """A field of a Params class: its default, one line of help and its unit."""
    return dataclasses.field(default=default, metadata={"help": f"{help} [{unit}]" if unit else help})


def to_json(params: Any) -> str:
    """Sorted JSON of a Params instance: what the artefact stores and the fingerprint covers."""
    return json.dumps(dataclasses.asdict(params), sort_keys=True)


def from_json(cls: type, text: str) -> Any:
    """A Params instance from stored JSON. Raises InputError for other text, UsageError for a setting not in `cls`."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"stored parameters are not JSON: {error}", EXAMPLE) from error
    if not isinstance(values, dict):
        raise InputError(f"stored parameters are no JSON object but {text.strip()[:40]!r}", EXAMPLE)
    unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
    if unknown:
        raise UsageError(
            f"stored parameters have no place here: {', '.join(unknown)}", "was this made by another stage?"
        )
    for field in dataclasses.fields(cls):  # a wrong type would only show deep inside the stage
        if field.name in values and not _fits(values[field.name], field.default):
            raise UsageError(
                f"stored parameter {field.name} is {json.dumps(values[field.name])[:40]}",
                f"it must be like {json.dumps(field.default)}",
            )
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _fits(value: Any, default: Any) -> bool:
    """Is a JSON value of the kind of a field's default? Unknown (no default, or None) passes."""
    if default is None or default is dataclasses.MISSING or value is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, (tuple, list)):
        return isinstance(value, list)
    if isinstance(default, (int, float)):
        return isinstance(value, (int, float)) and not (isinstance(default, int) and value != int(value))
    return isinstance(value, type(default))


@dataclasses.dataclass(frozen=True)
class DetectParams:
    """Settings of `hmr detect`."""

    detector: str = param("auto", f"auto, {', '.join(DETECTORS)}, or your own as package.module:Class.")
    detector_config: str = param("", "mmpose: name of the shipped config, where the checkpoint's name does not say it.")
    min_score: float | None = param(None, "Lowest score of a person; default: the detector's own.")
    max_people: int = param(0, "At most this many people in a picture, the best ones; 0 = all.")
    focal: float | None = param(None, "Focal length of all pictures.", unit="px")
    fov: float | None = param(None, "Horizontal angle of view of all pictures.", unit="degrees")
    tracks: str = param("video", "Link people over time: video, all (photos in their order too), none.")
    fps: float | None = param(None, "With --tracks all: photos a second; they get times. Default: 25, and no times.")
    every: int = param(1, "Take each n-th frame of a video.")
    views: bool = param(False, "Each input is one camera of a multi-view take (frames/view).")
    max_pixels: int = param(MAX_PIXELS, "Larger pictures are refused.", unit="px")


@dataclasses.dataclass(frozen=True)
class ImportParams:
    """What is taken over and how."""

    joint_set: str = param("", "joint set of the keypoints; by default what the file says, or what its length tells")
    min_score: float = param(0.0, "people below this score are left out")
    min_keypoints: int = param(1, "annotated people with fewer labelled joints are left out (COCO, OpenPose)")
    margin: float = param(0.1, "where a box must be made from keypoints: added on each side, share of its longer side")
    focal: float = param(0.0, "focal length of all pictures; 0: from EXIF, else the picture's diagonal", unit="px")
    size: str = param("", "WIDTHxHEIGHT of all pictures, where neither the file nor --images tells")
    fps: float | None = param(
        None, "the pictures are frames of a take, numbered in their names, so many a second: they get times and tracks"
    )


@dataclasses.dataclass(frozen=True)
class ImportBodiesParams:
    """What a file of bodies does not say (stages/formats/bodies.py; here, because that module needs torch)."""

    body: str = param("smpl", "Body model the parameters are for; it must have been added, or be embedded.")
    focal: float = param(5000.0, "Focal length of the predicting program (HMR 2.0, SPIN, PHALP: 5000).", unit="px")
    size: str = param("", "WIDTHxHEIGHT of all pictures, where neither the file nor --images tells.")


@dataclasses.dataclass(frozen=True)
class TrackParams:
    """Settings of `hmr track`."""

    fps: float | None = param(None, "Frames a second of images that have no times; they get times, by their numbers.")
    max_gap: float = param(MAX_GAP, "A person unseen for longer comes back as a new track.", unit="s")
    replace: bool = param(False, "Number people anew where the file has tracks already.")


@dataclasses.dataclass(frozen=True)
class HeatmapsParams:
    """Settings of `hmr heatmaps`; the defaults are DPMesh's."""

    joint_set: str = param("dpmesh30", "Joints to draw; dpmesh30 is what DPMesh's checkpoints take.")
    size: int = param(32, "Side of the square maps.", unit="px")
    sigma: float = param(2.5, "Width of the Gaussians.", unit="heatmap px")
    threshold: float = param(0.05, "A joint with a higher score counts as seen.")


@dataclasses.dataclass(frozen=True)
class FeaturesParams:
    """Settings of `hmr features`."""

    model: str = param("", "dpmesh, dpmesh-latents, pare, prohmr or package.module:Class; empty: what --ckpt is for.")
    precision: str = param("float16", "DPMesh: float16, or float32 for exactly what a run without files computes.")


@dataclasses.dataclass(frozen=True)
class RecoverParams:
    """Settings of `hmr recover`."""

    model: str = param(
        "", "embedded, dpmesh, postometro, fastmetro or package.module:Class; empty: what --ckpt is for."
    )
    body: str = param("", "Body model, by name or file; empty: the recoverer's own.")
    gender: str = param("neutral", "Of the body model that --body names: neutral, female or male.")
    focal: str = param(
        "row",
        "DPMesh: row, or first: bodies are placed for the focal length of the first picture of each batch, "
        "as in the authors' program; then --batch-size changes results.",
    )


@dataclasses.dataclass(frozen=True)
class RefineParams:
    """Settings of `hmr refine`; step sizes and counts are the paper's for its weights."""

    mode: str = param("frame", "frame (each row alone), video (tracks, smooth in time) or views (cameras agree).")
    method: str = param("score", "score (the prior) or fit (plain gradient fitting of the same loss).")
    preset: str = param(
        "default", "Step of the noise index: paper 2, fast 10; default: what suits the weights and the mode."
    )
    smooth: float = param(30.0, "Weight of smoothness in --mode video; 10 to 70 are useful.")
    keypoint_weight: float = param(0.0, "Step size of the keypoint term; 0: what suits the weights.")
    loops: int = param(0, "Times up into noise and back; 0: what suits the weights and the mode.")
    min_score: float = param(0.0, "Keypoints with a lower score are not used.")
    min_joints: int = param(3, "Rows with fewer usable keypoints stay as they are (in video: only smoothness).")
    hips: bool = param(True, "Use the hip keypoints.")
    max_gap: int = param(30, "Video: longer gaps in a track are not bridged.", unit="frames")
    fill_gaps: bool = param(False, "Video: write the filled frames as rows of their own, marked.")
    shape: str = param("track", "Betas in video and views: track (their mean over the track or the views) or row.")
    hypotheses: int = param(1, "Refine this many poses around each estimate; all are written, the likeliest is smpl/.")
    fit_steps: int = param(60, "Steps of --method fit.")
    fit_prior: float = param(0.0, "--method fit: weight of the squared distance to the start.")
    stats: str = param("", "Statistics file of the image features, if not beside the checkpoint.")
    cameras: str = param("", "Views: JSON file {view: {R: 3x3, t: 3}} of world-to-camera poses, if calibrated.")
    body: str = param("", "Body model; empty: the one that the meshes name.")


@dataclasses.dataclass(frozen=True)
class EvaluateParams:
    """How errors are defined."""

    protocol: str = param("", "dpmesh, scorehmr, postometro, emdb, neutral, body ...; empty = the data set's own.")


@dataclasses.dataclass(frozen=True)
class ViewParams:
    """Settings of `hmr view`."""

    style: str = param("mesh", "mesh, skeleton or both, over the photo.")
    side: bool = param(False, "Also photo, overlay and a view from the side next to one another.")
    turn: bool = param(False, "Also a short video that walks round the people of each photo.")
    pictures: bool = param(True, "Write the overlays as files.")
    report: bool = param(True, "Write report.html: pictures, people, provenance, all in one file.")
    rerun: bool = param(False, "Also a scene for the rerun viewer (needs the extra rerun).")
    max_side: int = param(1600, "Larger photos are reduced to this before drawing.", unit="px")
    opacity: float = param(1.0, "Of the bodies, 0 to 1.")
    supersample: int = param(2, "Draw at this many times the size, for smooth edges.")
    labels: bool = param(True, "Write row (or track) numbers at the boxes where there are several people.")
    min_score: float = param(0.3, "Keypoints with a lower score are not drawn.")
    limit: int = param(0, "Only the first frames; 0 = all.")
    body: str = param("", "Another body than the artefact's: a name or file.")
    root: str = param("", "The folder that frame names are relative to, if it has moved.")
    blank: bool = param(False, "Draw on paper, do not look for the photos.")


@dataclasses.dataclass(frozen=True)
class ExportParams:
    """Settings of `hmr export`."""

    format: str = param("glb", "glb, npz, obj, or several with commas.")
    bind: str = param(
        "auto", "GLB: mesh stored as the person stands (pose), in the T pose (t), or auto: pose for photos."
    )
    axes: str = param("amass", "npz: amass (z up, the camera held level) or camera (as in the artefact).")
    max_gap: float = param(1.0, "npz: shorter gaps in a track are filled, longer ones cut it.", unit="s")
    body: str = param("", "Another body than the artefact's: a name or file.")
    licensed_body: bool = param(False, "I may pass on shapes of this body (needed for GLB and OBJ of SMPL's own body).")


@dataclasses.dataclass(frozen=True)
class SynthParams:
    """Which set, and how its keypoints are made."""

    noise: bool = param(True, "Disturb keypoints as detectors do; without it they are the truth.")
    pictures: int = param(0, "Only the first pictures of the set; 0 = all. Scores of a shortened set are marked.")
    poses: str = param("", "For training: a motion file (mocap_smpl24.npz) to draw poses from, not the benchmark's.")


@dataclasses.dataclass(frozen=True)
class ConvertParams:
    """Settings of `hmr convert`."""

    fold: bool = param(True, "Add LoRA into the weights: loads faster; without, it can be trained on.")
    dtype: str = param("float32", "float32, float16 or bfloat16 (half the size; regressor and pose head stay float32).")


@dataclasses.dataclass(frozen=True)
class TrainEmbeddedParams:
    """Settings of `hmr train embedded`."""

    max_minutes: float = param(60.0, "Train this long in all, resumed runs counted together.", unit="minutes")
    samples: int = param(0, "Train on this many people instead; 0 goes by time.")
    batch: int = param(1024, "People per step.")
    width: int = param(576, "Width of the network.")
    blocks: tuple[int, ...] = param((1, 1, 1, 1), "Residual blocks in each round.")
    rate: float = param(1e-3, "Largest learning rate of AdamW.")
    seed: int = param(0, "Of people and initial weights.")


@dataclasses.dataclass(frozen=True)
class TrainPriorParams:
    """Settings of `hmr train prior`."""

    max_minutes: float = param(15.0, "Train this long in all, resumed runs counted together.", unit="minutes")
    steps: int = param(0, "Train so many steps instead; 0 goes by time.")
    batch: int = param(512, "Poses in a step.")
    hidden: int = param(1024, "Width of the blocks.")
    blocks: int = param(4, "Number of blocks.")
    rate: float = param(1e-3, "Largest learning rate of AdamW.")
    low: float = param(0.7, "Share of noise indices drawn below 150 of 1000.")
    people: int = param(30_000, "People on whom the recoverer's error is measured.")
    seed: int = param(0, "Of poses, noise and initial weights.")


@dataclasses.dataclass(frozen=True)
class TrainDPMeshParams:
    """Settings of `hmr train dpmesh`."""

    steps: int = param(1000, "Steps of the optimiser.")
    batch: int = param(8, "People per step.")
    rate: float = param(1e-4, "Learning rate.")
    nkr: float = param(0.1, "Weight of the distillation from clean keypoints; 0 leaves the teacher out.")
    control: bool = param(True, "Train the ControlNet too; the released optimiser leaves it out.")
    augment: bool = param(True, "Scale, turn, mirror and colour the crops, and hide joints.")
    body: str = param("embedded", "Body model, by name or file.")
    seed: int = param(0, "Of order, noise and augmentation.")


@dataclasses.dataclass(frozen=True)
class TrainPostoMetroParams:
    """Settings of `hmr train postometro`."""

    part: str = param("mesh", "tokenizer, classifier or mesh.")
    recipe: str = param("code", "Losses of the mesh network: paper or code.")
    tokens: str = param("pct", "Pose tokens of the mesh network: pct (from the crop), keypoints (given ones) or none.")
    size: str = param("L", "S, M or L: 1, 2 or 3 layers in each half of each stage.")
    backbone: str = param("resnet50", "resnet50, hrnet_w48 or hrnet_w64.")
    swin: str = param("base", "PCT's Swin: base, large or huge.")
    thaw: bool = param(False, "Let the classifier's Swin learn too; as published it is frozen, trained on heatmaps.")
    steps: int = param(1000, "Steps of the optimiser.")
    batch: int = param(16, "People per step.")
    rate: float = param(0.0, "Learning rate; 0 = the published one.")
    body: str = param("embedded", "Body model, by name or file.")
    seed: int = param(0, "Of initial weights, order and augmentation.")
