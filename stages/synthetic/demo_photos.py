"""Given photos and rendered scenes for a first look: `python -m stages.synthetic.demo_photos FOLDER [PHOTO ...]`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

SCENES = (("synth", 0), ("synth-oc", 1), ("synth-pc", 2), ("synth-crowd", 0))


def main(folder: Path, images: list[Path]) -> None:
    """Fill `folder` with images to run on."""
    from stages.media.images import write_image
    from stages.synthetic.examples import draw_example

    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        shutil.copy(image, folder)
    for name, number in SCENES:
        write_image(folder / f"{name}-{number}.jpg", draw_example(name, number))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
