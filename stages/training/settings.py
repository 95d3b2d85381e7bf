"""The settings of every training, apart from the trainings: the command line reads them without torch."""

from __future__ import annotations

import dataclasses

from stages.params import param


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Settings of `hmr train embedded`."""

    max_minutes: float = param(60.0, "Train this long in all, resumed runs counted together.", unit="minutes")
    samples: int = param(0, "Train on this many people instead; 0 goes by time.")
    batch: int = param(1024, "People per step.")
    width: int = param(576, "Width of the network.")
    blocks: tuple[int, ...] = param((1, 1, 1, 1), "Residual blocks in each round.")
    rate: float = param(1e-3, "Largest learning rate of AdamW.")
    seed: int = param(0, "Of people and initial weights.")


@dataclasses.dataclass(frozen=True)
class Prior:
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
class PostoMetro:
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


@dataclasses.dataclass(frozen=True)
class DPMesh:
    """Settings of `hmr train dpmesh`."""

    steps: int = param(1000, "Steps of the optimiser.")
    batch: int = param(8, "People per step.")
    rate: float = param(1e-4, "Learning rate.")
    nkr: float = param(0.1, "Weight of the distillation from clean keypoints; 0 leaves the teacher out.")
    control: bool = param(True, "Train the ControlNet too; the released optimiser leaves it out.")
    augment: bool = param(True, "Scale, turn, mirror and colour the crops, and hide joints.")
    body: str = param("embedded", "Body model, by name or file.")
    seed: int = param(0, "Of order, noise and augmentation.")
