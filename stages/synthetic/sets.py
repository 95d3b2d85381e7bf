"""The synthetic benchmark as data: what is in each set. Change anything here and VERSION must change too."""

from __future__ import annotations

import dataclasses

VERSION = 1  # scores name it: numbers of different versions are not comparable
SIZE = (640, 480)  # width, height of every image, px


@dataclasses.dataclass(frozen=True)
class SynthSet:
    """One set. A scene has `frames` images (consecutive in time, or `views` cameras at one instant)."""

    name: str
    meaning: str
    scenes: int
    people: tuple[int, int] = (1, 1)  # fewest, most
    objects: tuple[int, int] = (0, 0)  # occluders in front of people
    distance: tuple[float, float] = (2.6, 5.0)  # metres from the camera to the first person
    spread: float = 0.0  # metres between neighbours on the ground, about
    frames: int = 1
    fps: float = 30.0  # images a second, of a scene with several frames
    views: int = 1
    crowded: bool = False  # keypoints swap between people more often
    walking: bool = False  # people walk about (stages/synthetic/crowd_video.py)
    motion: str = ""  # for training: a motion file to draw poses from, instead of the benchmark's

    @property
    def images(self) -> int:
        """Images in the whole set."""
        return self.scenes * self.frames * self.views


SETS: dict[str, SynthSet] = {
    each.name: each
    for each in (
        SynthSet("synth", "one person, nothing in front", scenes=520),
        SynthSet("synth-oc", "objects in front of one person", scenes=570, objects=(1, 3)),
        SynthSet(
            "synth-pc",
            "people in front of and beside each other",
            290,
            (2, 3),
            distance=(2.8, 4.5),
            spread=0.45,
            crowded=True,
        ),
        SynthSet("synth-crowd", "four to eight people", 110, (4, 8), distance=(3.5, 6.0), spread=0.6, crowded=True),
        SynthSet("synth-video", "one person moving, 48 frames a clip", scenes=12, frames=48),
        SynthSet("synth-views", "one person, four cameras", scenes=135, distance=(3.0, 4.5), views=4),
        SynthSet(
            "synth-crowd-video",
            "six to nine people crossing behind obstacles, 90 frames a clip",
            8,
            (6, 9),
            objects=(1, 3),
            distance=(4.5, 7.0),
            frames=90,
            fps=15.0,
            crowded=True,
            walking=True,
        ),
    )
}
