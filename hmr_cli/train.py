"""`hmr train embedded`, `hmr train prior`: and the other networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmr_cli._flags import stage_command
from stages.params import TrainDPMeshParams, TrainEmbeddedParams, TrainPostoMetroParams, TrainPriorParams

app = typer.Typer(no_args_is_help=True)
Poses = Annotated[
    Path, typer.Option(help="Motion capture: an .npz with poses, seq, seq_subject, seq_source.", show_default=False)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


@app.callback()
def train() -> None:
    """Train the embedded recoverer and the other networks. Every training can be stopped and resumed.

    Examples:

        hmr train embedded --poses mocap_smpl24.npz -o embedded.safetensors

        hmr train prior --poses mocap_smpl24.npz -o prior.safetensors

        hmr train postometro --data oc.detections.h5 --init fastmetro.bin --init pct.pth -o mesh.safetensors

        hmr train dpmesh --data oc.detections.h5 --init dpmesh.safetensors -o own.safetensors
    """


@stage_command(app, TrainEmbeddedParams, name="embedded")
def embedded(*, poses: Poses, out: Path, params: TrainEmbeddedParams, device: Device = "cpu", report: Any) -> Any:
    """The embedded recoverer: keypoints to a body. The state is kept beside the target; the same command resumes.

    Examples:

        hmr train embedded --poses mocap_smpl24.npz -o embedded.safetensors

        hmr train embedded --poses mocap_smpl24.npz -o big.safetensors --width 1024 --device cuda --max-minutes 20

        hmr train embedded --poses mocap_smpl24.npz -o try.safetensors --max-minutes 0.5 --width 128
    """
    from stages.engine.device import resolve_device
    from stages.training import embedded as training

    return training.run(poses, out, params, resolve_device(device), report)


@stage_command(app, TrainPriorParams, name="prior")
def prior(
    *,
    poses: Poses,
    out: Path,
    params: TrainPriorParams,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="The prior of the embedded recoverer: the only one.")
    ] = True,
    report: Any,
) -> Any:
    """The embedded pose prior, for `hmr refine`. The state is kept beside the target; the same command resumes.

    Examples:

        hmr train prior --poses mocap_smpl24.npz -o prior.safetensors --max-minutes 15
    """
    from stages.training import prior as training

    return training.run(poses, out, params, report)


@stage_command(app, TrainPostoMetroParams, name="postometro")
def postometro(
    *,
    data: Annotated[
        Path,
        typer.Option(
            help="Detections with true bodies, as hmr synth --poses writes; tokenizer: a motion file too.",
            show_default=False,
        ),
    ],
    out: Path,
    params: TrainPostoMetroParams,
    init: Annotated[list[Path] | None, typer.Option(help="Checkpoints to begin from: FastMETRO, PCT, our own.")] = None,
    root: Annotated[Path | None, typer.Option(help="Where the images are.")] = None,
    device: Device = "cpu",
    report: Any,
) -> Any:
    """PostoMETRO, FastMETRO (--tokens none) and PCT: tokenizer, classifier, then the mesh network.

    The state is kept beside the target; the same command resumes.

    Examples:

        hmr train postometro --part tokenizer --data mocap.npz --rate 1e-3 --steps 4000 -o tokens.safetensors

        hmr synth synth-oc --poses mocap.npz --pictures 3200 -o oc.detections.h5

        hmr train postometro --data oc.detections.h5 --tokens keypoints --init tokens.safetensors -o mesh.safetensors

        hmr train postometro --data oc.detections.h5 --init fastmetro.bin --init pct.pth -o mesh.safetensors
    """
    from stages.engine.device import resolve_device
    from stages.training.postometro import train as training

    return training.run(data, out, params, resolve_device(device), report, init=init or (), root=root)


@stage_command(app, TrainDPMeshParams, name="dpmesh")
def dpmesh(
    *,
    data: Annotated[Path, typer.Option(help="Detections with bodies, from hmr synth --poses.", show_default=False)],
    out: Path,
    params: TrainDPMeshParams,
    init: Annotated[Path | None, typer.Option(help="A DPMesh checkpoint to begin with.")] = None,
    sd: Annotated[Path | None, typer.Option(help="Or Stable Diffusion 1.5: a diffusers folder or a file.")] = None,
    controlnet: Annotated[Path | None, typer.Option(help="With --sd: a ControlNet folder or file.")] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="The network that sees clean keypoints; default: the initial one."),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Where the images are.")] = None,
    device: Device = "cpu",
    report: Any,
) -> Any:
    """DPMesh on noisy keypoints, beside a frozen teacher on clean ones; LoRA stays apart in what is written.

    The state is kept beside the target; the same command resumes.

    Examples:

        hmr train dpmesh --data oc.detections.h5 --init 3dpw-pc_best_ckpt.pth.tar --device cuda -o own.safetensors

        hmr train dpmesh --data oc.detections.h5 --sd stable-diffusion-v1-5/ --nkr 0 -o first.safetensors
    """
    from stages.engine.device import resolve_device
    from stages.training.dpmesh import train as training

    return training.run(
        data, out, params, resolve_device(device), report,
        init=init, sd=sd, controlnet=controlnet, teacher=teacher, root=root,
    )  # fmt: skip
