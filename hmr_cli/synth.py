"""`hmr synth`: synthetic scenes with exact ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmr_cli._flags import stage_command
from stages.params import SynthParams

app = typer.Typer()


@stage_command(app, SynthParams)
def synth(
    name: Annotated[str, typer.Argument(help="synth, synth-oc, synth-pc, synth-crowd, synth-video or synth-views.")],
    *,
    out: Path,
    params: SynthParams,
    run: Any,
) -> Path:
    """Synthetic scenes with exact ground truth: images, keypoints from a stated error model, the truth itself.

    The images go into a folder named like the set (and, with --poses, by their fingerprint), beside the artefact.

    Examples:

        hmr synth synth-oc -o bench/synth-oc.detections.h5

        hmr synth synth-crowd --pictures 8 -o crowd.detections.h5

        hmr synth synth-oc --pictures 3200 --poses mocap_smpl24.npz -o train.detections.h5
    """
    from stages import synth

    return synth.run(name, out, params, run)
