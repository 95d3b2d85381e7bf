"""`hmr detect`: photos and video -> detections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from hmr_cli._flags import stage_command
from stages.params import DetectParams

app = typer.Typer()
Pictures = Annotated[
    Optional[list[str]],
    typer.Argument(help="Photos, folders, globs, videos, or - to read names from stdin.", show_default=False),
]
FilesFrom = Annotated[Optional[Path], typer.Option(help="A file with one name per line.")]
Boxes = Annotated[Optional[Path], typer.Option(help="Detections with boxes only: keep its rows, add keypoints.")]
Root = Annotated[Optional[Path], typer.Option(help="With --boxes: the folder that picture names are relative to.")]
Cameras = Annotated[Optional[Path], typer.Option(help="Intrinsics: .json, .npy or .txt, see docs/detectors.md.")]
DetectorPath = Annotated[Optional[Path], typer.Option(help="The detector's files, see docs/detectors.md.")]


@stage_command(app, DetectParams)
def detect(
    inputs: Pictures = None,
    *,
    files_from: FilesFrom = None,
    boxes: Boxes = None,
    root: Root = None,
    cameras: Cameras = None,
    detector_path: DetectorPath = None,
    out: Path,
    params: DetectParams,
    run: Any,
) -> Any:
    """People in photos and video: boxes, 2D keypoints, scores, tracks, cameras.

    The default detector is in the package; `hmr assets get` fetches better ones for crowds (docs/detectors.md).

    Examples:

        hmr detect photo.jpg -o photo.detections.h5

        hmr detect photos/ video.mp4 -o all.detections.h5 --detector vitpose --device cuda

        hmr detect video.mp4 -o video.detections.h5 --every 2 --fov 60

        hmr import boxes boxes.csv --images photos/ -o boxes.h5 && hmr detect --boxes boxes.h5 -o photos.detections.h5

        hmr detect photos/ -o p.detections.h5 --detector mmpose --detector-path td-hm_hrnet-w32_...20220909.pth
    """
    from stages import detect as stage

    return stage.run(
        inputs or [],
        out,
        params,
        run,
        files_from=files_from,
        boxes=boxes,
        root=root,
        cameras=cameras,
        detector_path=detector_path,
    )
