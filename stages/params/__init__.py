"""The settings of every stage and training, on one page. This module imports neither torch nor numpy.

The settings of a stage are a frozen dataclass whose fields are made by `param`. The command line turns every field into
a flag (`min_score` -> `--min-score`), the artefact stores them as sorted JSON (stored.py), `--params-from` reads them
back. A setting that is not given is None. Values are refused in one place, `check` of rules.py, by the command line and
by every stage.
"""

from __future__ import annotations

import dataclasses
import math

from stages.models.tables import DETECTORS
from stages.params.rules import optional_text, param

MAX_GAP = 3.0  # s without being seen after which a tracker forgets a person
MAX_PIXELS = 100_000_000  # larger images are refused before they are decoded


@dataclasses.dataclass(frozen=True)
class DetectParams:
    """Settings of `hmr detect`."""

    detector: str = param("auto", f"auto, {', '.join(DETECTORS)}, or your own as package.module:Class.")
    detector_config: str | None = optional_text(
        "mmpose: name of the shipped config, where the checkpoint's name does not say it."
    )
    min_score: float | None = param(None, "Lowest score of a person; default: the detector's own.", low=0, high=1)
    max_people: int | None = param(
        None, "At most this many people in an image, the best ones; without, all.", low=1, stored_none=0
    )
    focal: float | None = param(None, "Focal length of all images.", unit="px", above=0)
    fov: float | None = param(None, "Horizontal angle of view of all images.", unit="degrees", above=0, below=180)
    tracks: str = param(
        "video",
        "Link people over time: in videos, over all images in their order, or not.",
        choices=("video", "all", "none"),
    )
    fps: float | None = param(
        None, "With --tracks all: images a second; they get times. Default: 25, and no times.", above=0
    )
    every: int = param(1, "Take each n-th frame of a video.", low=1)
    views: bool = param(False, "Each input is one camera of a multi-view take (frames/view).")
    max_pixels: int = param(MAX_PIXELS, "Larger images are refused.", unit="px", low=1)


@dataclasses.dataclass(frozen=True)
class ImportParams:
    """Settings of `hmr import coco`, `openpose` and `boxes`."""

    joint_set: str | None = optional_text(
        "Joint set of the keypoints; by default what the file says, or what their number implies."
    )
    min_score: float = param(0.0, "People with a lower score are left out.")
    min_keypoints: int = param(1, "Annotated people with fewer labelled joints are left out (COCO, OpenPose).", low=0)
    margin: float = param(
        0.1, "Where a box must be made from keypoints: added on each side, as a share of its longer side.", low=0
    )
    focal: float | None = param(
        None, "Focal length of all images; default: from EXIF, else the image's diagonal.",
        unit="px", above=0, stored_none=0.0,
    )  # fmt: skip
    size: str | None = optional_text("WIDTHxHEIGHT of all images, where neither the file nor --images says it.")
    fps: float | None = param(
        None, "The images are frames of a take, numbered in their names, so many a second: they get times and tracks.",
        above=0,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ImportBodiesParams:
    """Settings of `hmr import amass`, `hmr2` and `phalp`: what a file of bodies does not say."""

    body: str = param("smpl", "Body model the parameters are for; it must have been added, or be embedded.")
    focal: float = param(
        5000.0, "Focal length of the predicting program (HMR 2.0, SPIN, PHALP: 5000).", unit="px", above=0
    )
    size: str | None = optional_text("WIDTHxHEIGHT of all images, where neither the file nor --images says it.")


@dataclasses.dataclass(frozen=True)
class TrackParams:
    """Settings of `hmr track`."""

    fps: float | None = param(
        None, "Frames a second of images that have no times; they get times, by their numbers.", above=0
    )
    max_gap: float = param(MAX_GAP, "A person unseen for longer comes back as a new track.", unit="s", above=0)
    replace: bool = param(False, "Number people anew where the file has tracks already.")
    views: bool = param(False, "Also over cameras: one number for each person in all views (frames/view).")
    cameras: str | None = param(None, "Views: JSON file {view: {R: 3x3, t: 3}} of world-to-camera poses.")


@dataclasses.dataclass(frozen=True)
class HeatmapsParams:
    """Settings of `hmr heatmaps`; the defaults are DPMesh's."""

    joint_set: str = param("dpmesh30", "Joints to draw; dpmesh30 is what DPMesh's checkpoints take.")
    size: int = param(32, "Side of the square maps.", unit="px", low=2)
    sigma: float = param(2.5, "Width of the Gaussians.", unit="heatmap px", above=0)
    threshold: float = param(0.05, "A joint with a higher score counts as visible.", low=0, below=1)


@dataclasses.dataclass(frozen=True)
class FeaturesParams:
    """Settings of `hmr features`."""

    model: str | None = optional_text(
        "dpmesh, dpmesh-latents, pare, prohmr or package.module:Class; default: what --ckpt is for."
    )
    precision: str = param(
        "float16", "DPMesh: float32 gives exactly what a run without files computes.", choices=("float16", "float32")
    )


@dataclasses.dataclass(frozen=True)
class RecoverParams:
    """Settings of `hmr recover`."""

    model: str | None = optional_text(
        "embedded, dpmesh, postometro, fastmetro or package.module:Class; default: what --ckpt is for."
    )
    body: str | None = optional_text("Body model, by name or file; default: the recoverer's own.")
    gender: str = param("neutral", "Of the body model that --body names.", choices=("neutral", "female", "male"))
    focal: str = param(
        "row",
        "DPMesh: first places bodies for the focal length of the first image of each batch, as the authors' program "
        "does; then --batch-size changes results.",
        choices=("row", "first"),
    )


@dataclasses.dataclass(frozen=True)
class RefineParams:
    """Settings of `hmr refine`; step sizes and counts are the paper's for its weights."""

    model: str | None = optional_text("Refiner: scorehmr or package.module:Class; default: what --ckpt is for.")
    mode: str = param(
        "frame", "Each row alone, views of one moment, or tracks, smooth in time.", choices=("frame", "views", "video")
    )
    method: str = param(
        "score", "The diffusion prior, or plain gradient fitting of the same loss.", choices=("score", "fit")
    )
    preset: str = param(
        "default", "Step of the noise index: paper 2, fast 10; default: what suits the weights and the mode.",
        choices=("default", "paper", "fast"),
    )  # fmt: skip
    smooth: float = param(30.0, "Weight of smoothness in --mode video; 10 to 70 are useful.", low=0)
    keypoint_weight: float | None = param(
        None, "Step size of the keypoint term; default: what suits the weights.", above=0, stored_none=0.0
    )
    loops: int | None = param(
        None, "Times up into noise and back; default: what suits the weights and the mode.", low=1, stored_none=0
    )
    min_score: float = param(0.0, "Keypoints with a lower score are not used.")
    min_joints: int = param(3, "Rows with fewer usable keypoints stay as they are (in video: only smoothness).", low=1)
    hips: bool = param(True, "Use the hip keypoints.")
    max_gap: int = param(30, "Video: longer gaps in a track are not bridged.", unit="frames", low=0)
    fill_gaps: bool = param(False, "Video: write the interpolated frames as rows of their own, marked.")
    shape: str = param(
        "track",
        "Betas in video and views: each row's, or the mean over the track or the views.",
        choices=("row", "track"),
    )
    hypotheses: int = param(
        1, "Refine this many poses around each estimate; all are written, the likeliest is smpl/.", low=1
    )
    fit_steps: int = param(60, "Steps of --method fit.", low=0)
    fit_prior: float = param(0.0, "--method fit: weight of the squared distance to the start.", low=0)
    stats: str | None = optional_text("Statistics file of the image features, if not beside the checkpoint.")
    cameras: str | None = optional_text(
        "Views: JSON file {view: {R: 3x3, t: 3}} of world-to-camera poses, if calibrated."
    )
    body: str | None = optional_text("Body model; default: the one that the meshes name.")


@dataclasses.dataclass(frozen=True)
class EvaluateParams:
    """Settings of `hmr eval`: how errors are defined."""

    protocol: str | None = optional_text(
        "dpmesh, scorehmr, postometro, emdb, neutral, body ...; default: the data set's own."
    )


@dataclasses.dataclass(frozen=True)
class ViewParams:
    """Settings of `hmr view`."""

    style: str = param("mesh", "What is drawn over the image.", choices=("mesh", "skeleton", "both"))
    side: bool = param(False, "Also image, overlay and a view from the side next to one another.")
    turn: bool = param(False, "Also a short video that walks round the people of each image.")
    pictures: bool = param(True, "Write the overlays as files.")
    report: bool = param(True, "Write report.html: images, people, provenance, all in one file.")
    rerun: bool = param(False, "Also a scene for the rerun viewer (needs the extra rerun).")
    max_side: int = param(1600, "Larger images are reduced to this before drawing.", unit="px", low=64)
    opacity: float = param(1.0, "Of the bodies.", low=0, high=1)
    supersample: int = param(2, "Draw at this many times the size, for smooth edges.", low=1, high=4)
    labels: bool = param(True, "Write row (or track) numbers at the boxes where there are several people.")
    min_score: float = param(0.3, "Keypoints with a lower score are not drawn.")
    limit: int | None = param(None, "Only the first frames; without, all.", low=1, stored_none=0)
    body: str | None = optional_text("Another body than the artefact's: a name or file.")
    root: str | None = optional_text("The folder that frame names are relative to, if it has moved.")
    blank: bool = param(False, "Draw on a blank page, do not look for the images.")


@dataclasses.dataclass(frozen=True)
class ExportParams:
    """Settings of `hmr export`."""

    format: str = param("glb", "glb, npz, obj, or several with commas.")
    bind: str = param(
        "auto", "GLB: store the mesh as the person stands (pose) or in the T pose (t); auto: pose for single images.",
        choices=("auto", "pose", "t"),
    )  # fmt: skip
    axes: str = param(
        "amass", "npz: z up and the camera held level, or as in the artefact.", choices=("amass", "camera")
    )
    max_gap: float = param(
        1.0, "npz: shorter gaps in a track are filled, longer ones cut it.", unit="s", low=0, high=math.inf
    )
    body: str | None = optional_text("Another body than the artefact's: a name or file.")
    licensed_body: bool = param(False, "I may pass on shapes of this body (needed for GLB and OBJ of SMPL's own body).")


@dataclasses.dataclass(frozen=True)
class SynthParams:
    """Settings of `hmr synth`: which part of the set, and how its keypoints are made."""

    noise: bool = param(True, "Disturb keypoints as detectors do; without it they are the truth.")
    pictures: int | None = param(
        None, "Only the first images of the set; without, all. Scores of a shortened set are marked.",
        low=1, stored_none=0,
    )  # fmt: skip
    poses: str | None = optional_text(
        "For training: a motion file (mocap_smpl24.npz) to draw poses from, not the benchmark's."
    )


@dataclasses.dataclass(frozen=True)
class ConvertParams:
    """Settings of `hmr convert`."""

    fold: bool = param(True, "Add LoRA into the weights: loads faster; without, it can be trained on.")
    dtype: str = param(
        "float32", "Half precision takes half the size; regressor and pose head stay float32.",
        choices=("float32", "float16", "bfloat16"),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TrainEmbeddedParams:
    """Settings of `hmr train embedded`."""

    max_minutes: float = param(60.0, "Train this long in all, resumed runs counted together.", unit="minutes", low=0)
    samples: int | None = param(None, "Train on so many people; by default time decides.", low=1, stored_none=0)
    batch: int = param(1024, "People per step.", low=1)
    width: int = param(576, "Width of the network.", low=1)
    blocks: tuple[int, ...] = param((1, 1, 1, 1), "Residual blocks in each round.", low=1)
    rate: float = param(1e-3, "Largest learning rate of AdamW.", above=0, below=1)
    seed: int = param(0, "Of people and initial weights.")


@dataclasses.dataclass(frozen=True)
class TrainPriorParams:
    """Settings of `hmr train prior`."""

    max_minutes: float = param(15.0, "Train this long in all, resumed runs counted together.", unit="minutes", low=0)
    steps: int | None = param(None, "Train so many steps instead; by default time decides.", low=1, stored_none=0)
    batch: int = param(512, "Poses in a step.", low=1)
    hidden: int = param(1024, "Width of the blocks.", low=1)
    blocks: int = param(4, "Number of blocks.", low=1)
    rate: float = param(1e-3, "Largest learning rate of AdamW.", above=0, below=1)
    low: float = param(0.7, "Share of noise indices drawn below 150 of 1000.", low=0, high=1)
    people: int = param(30_000, "People on whom the recoverer's error is measured.", low=1)
    seed: int = param(0, "Of poses, noise and initial weights.")


@dataclasses.dataclass(frozen=True)
class TrainStepsParams:
    """What the trainings share that run for a number of steps on examples."""

    steps: int = param(1000, "Steps of the optimiser.", low=1)
    batch: int = param(8, "People per step.", low=1)
    body: str = param("embedded", "Body model, by name or file.")
    seed: int = param(0, "Of initial weights, order, noise and augmentation.", low=0)


@dataclasses.dataclass(frozen=True)
class TrainDPMeshParams(TrainStepsParams):
    """Settings of `hmr train dpmesh`."""

    rate: float = param(1e-4, "Learning rate.", above=0)
    nkr: float = param(0.1, "Weight of the distillation from clean keypoints; 0 leaves the teacher out.", low=0)
    control: bool = param(True, "Train the ControlNet too; the released optimiser leaves it out.")
    augment: bool = param(True, "Scale, turn, mirror and colour the crops, and hide joints.")


@dataclasses.dataclass(frozen=True)
class TrainPostoMetroParams(TrainStepsParams):
    """Settings of `hmr train postometro`."""

    part: str = param("mesh", "Which network to train.", choices=("tokenizer", "classifier", "mesh"))
    recipe: str = param("code", "Losses of the mesh network.", choices=("paper", "code"))
    tokens: str = param(
        "pct", "Pose tokens of the mesh network: from the crop (pct), from the keypoints of --data, or none.",
        choices=("pct", "keypoints", "none"),
    )  # fmt: skip
    size: str = param("L", "1, 2 or 3 layers in each half of each stage.", choices=("S", "M", "L"))
    backbone: str = param("resnet50", "Its image backbone.", choices=("resnet50", "hrnet_w48", "hrnet_w64"))
    swin: str = param("base", "PCT's Swin.", choices=("base", "large", "huge"))
    thaw: bool = param(False, "Let the classifier's Swin learn too; as published it is frozen, trained on heatmaps.")
    batch: int = param(16, "People per step.", low=1)
    rate: float | None = param(None, "Learning rate; default: the published one.", above=0, stored_none=0.0)
