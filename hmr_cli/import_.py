"""`hmr import`: what other tools have made. One sub-command per format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmr_cli._flags import stage_command
from stages.params import ImportBodiesParams, ImportParams

app = typer.Typer(no_args_is_help=True)
Images = Annotated[Path | None, typer.Option(help="Folder of the pictures.", show_default=False)]


@app.callback()
def imports() -> None:
    """Boxes, keypoints and bodies made by other tools.

    Examples:

        hmr import coco results.json --images photos/ -o photos.detections.h5

        hmr import openpose keypoints/ --images video.mp4 -o video.detections.h5

        hmr import boxes boxes.csv --images photos/ -o photos.detections.h5
    """


@stage_command(app, ImportParams)
def coco(
    file: Annotated[Path, typer.Argument(help="COCO results or annotations, JSON.", show_default=False)],
    *,
    images: Images = None,
    annotations: Annotated[
        Path | None, typer.Option(help="The annotations that results refer to (names and sizes of the pictures).")
    ] = None,
    out: Path,
    params: ImportParams,
    run: Any,
) -> Any:
    """COCO keypoints: a tool's results, or annotations.

    Examples:

        hmr import coco results.json --images photos/ -o photos.detections.h5

        hmr import coco person_keypoints.json --images photos/ --min-keypoints 9 -o truth.detections.h5

        hmr import coco vitpose.json --annotations val2017.json --min-score 0.3 -o val.detections.h5
    """
    from stages import import_
    from stages.formats.coco import read_coco

    return import_.run(read_coco(file, images, params, annotations), images, out, params, run)


@stage_command(app, ImportParams)
def openpose(
    folder: Annotated[Path, typer.Argument(help="Folder of NAME_keypoints.json files.", show_default=False)],
    *,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures, or the video.", show_default=False)
    ] = None,
    out: Path,
    params: ImportParams,
    run: Any,
) -> Any:
    """OpenPose's JSON files, BODY_25 or COCO-18.

    Examples:

        hmr import openpose keypoints/ --images photos/ -o photos.detections.h5

        hmr import openpose keypoints/ --images walk.mp4 -o walk.detections.h5

        hmr import openpose keypoints/ --size 1920x1080 -o walk.detections.h5
    """
    from stages import import_
    from stages.formats.openpose import read_openpose

    return import_.run(read_openpose(folder, params), images, out, params, run)


@stage_command(app, ImportParams)
def boxes(
    file: Annotated[Path, typer.Argument(help="Boxes, CSV or JSON.", show_default=False)],
    *,
    images: Images = None,
    out: Path,
    params: ImportParams,
    run: Any,
) -> Any:
    """Person boxes without keypoints: name, x1, y1, x2, y2 (or x, y, w, h), optionally score and track.

    Examples:

        hmr import boxes boxes.csv --images photos/ -o photos.detections.h5

        hmr import boxes boxes.json --size 1920x1080 --min-score 0.5 -o photos.detections.h5
    """
    from stages import import_
    from stages.formats.boxes import read_boxes

    return import_.run(read_boxes(file, params), images, out, params, run)


BodyFile = Annotated[Path, typer.Argument(help="The other program's file.", show_default=False)]
BoxesOut = Annotated[Path | None, typer.Option("--boxes", help="Also write detections with the same rows here.")]


@stage_command(app, ImportBodiesParams)
def amass(file: BodyFile, *, boxes: BoxesOut = None, out: Path, params: ImportBodiesParams, run: Any) -> Any:
    """Motion in AMASS's layout: SMPL bodies seen by a level camera.

    Examples:

        hmr import amass walk_poses.npz --body smpl -o walk.meshes.h5

        hmr import amass exported.npz --body embedded -o again.meshes.h5
    """
    from stages.formats.amass import read_amass
    from stages.import_ import run_bodies

    return run_bodies(read_amass(file, params), out, params, run, boxes=boxes)


@stage_command(app, ImportBodiesParams)
def hmr2(
    file: BodyFile,
    *,
    annotations: Annotated[Path | None, typer.Option(help="The set's npz: imgname, center, scale.")] = None,
    images: Images = None,
    boxes: BoxesOut = None,
    out: Path,
    params: ImportBodiesParams,
    run: Any,
) -> Any:
    """Predictions of SPIN, HMR 2.0 or ScoreHMR: pred_pose, pred_betas, pred_cam or pred_cam_t.

    Examples:

        hmr import hmr2 pred.npz --annotations 3dpw_test.npz --images 3dpw/ -o 3dpw.meshes.h5 --boxes 3dpw.detections.h5

        hmr import hmr2 pred.npz --size 1920x1080 -o pred.meshes.h5
    """
    from stages.formats.hmr2 import read_predictions
    from stages.import_ import run_bodies

    bodies = read_predictions(file, params, annotations, images)
    return run_bodies(bodies, out, params, run, boxes=boxes)


@stage_command(app, ImportBodiesParams)
def phalp(file: BodyFile, *, boxes: BoxesOut = None, out: Path, params: ImportBodiesParams, run: Any) -> Any:
    """Tracks of PHALP and 4D-Humans (.pkl), read without running anything in them.

    Examples:

        hmr import phalp results/demo_video.pkl -o video.meshes.h5 --boxes video.detections.h5
    """
    from stages.formats.phalp import read_phalp
    from stages.import_ import run_bodies

    return run_bodies(read_phalp(file, params), out, params, run, boxes=boxes)
