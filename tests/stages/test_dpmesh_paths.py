"""DPMesh through files and without: the same bits; batch sizes; artefacts of another network, of other settings or of
other keypoints are refused or used as they are meant; memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages import features, heatmaps, recover
from stages.artefacts.hdf5 import open_artefact
from stages.artefacts.table import Artefact, in_memory
from stages.convert import convert
from stages.engine.job import SILENT, RunOptions
from stages.errors import InputError, UsageError
from stages.files.checkpoints import read_checkpoint, write_checkpoint
from stages.models.dpmesh import DPMeshRecoverer
from stages.models.dpmesh.network import Config, DPMesh
from stages.models.dpmesh.weights import own_names
from stages.params import ConvertParams, FeaturesParams, HeatmapsParams, RecoverParams
from tests.helpers import dpmesh_standin as standin

NAMES = ("smpl/global_orient", "smpl/body_pose", "smpl/betas", "smpl/transl", "joints/xyz", "joints/confidence")
PHOTOS = ("000000214753.jpg", "000000397133.jpg", "000000165518.jpg")  # 2, 2 and 1 person (too few keypoints: fails)


@pytest.fixture(scope="module")
def detections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standin.photos(tmp_path_factory.mktemp("people"), PHOTOS)


@pytest.fixture(scope="module")
def recoverer(dpmesh_checkpoint: Path) -> tuple[DPMeshRecoverer, dict[str, str]]:
    checkpoint = read_checkpoint(dpmesh_checkpoint)
    model = DPMeshRecoverer.load(checkpoint)
    return model, model.provenance(checkpoint)


def run(batch: int = 3, **options: Any) -> RunOptions:
    return RunOptions(batch_size=batch, device="cpu", **options)


@pytest.fixture
def bodies(
    recoverer: tuple[DPMeshRecoverer, dict[str, str]],
    detections: Path,
    dpmesh_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """`hmr recover` as a function, with a network that is loaded once."""
    monkeypatch.setattr(recover, "load", lambda *_: recoverer)

    def call(table: Any = detections, out: Path | None = None, batch: int = 3, **given: Any) -> dict[str, np.ndarray]:
        made: Any = recover.run(table, out, run=run(batch), ckpt=dpmesh_checkpoint, root=standin.PHOTOS, **given)
        with made if isinstance(made, Artefact) else open_artefact(made, "meshes") as table:
            return {name: table.read(name) for name in NAMES}

    return call


@pytest.fixture
def direct(bodies: Any, known: dict[str, Any]) -> dict[str, np.ndarray]:
    """Everything in memory."""
    if "direct" not in known:
        known["direct"] = bodies()
    return known["direct"]


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    return {}


@pytest.fixture(scope="module")
def maps(detections: Path) -> Path:
    made = heatmaps.run(detections, detections.with_name("people.heatmaps.h5"))
    assert isinstance(made, Path)
    return made


@pytest.fixture(scope="module")
def exact(detections: Path, maps: Path, dpmesh_checkpoint: Path) -> Path:
    """float32 features, made by way of a heatmaps file."""
    made = features.run(
        detections, detections.with_name("exact.features.h5"), FeaturesParams(precision="float32"), run(),
        ckpt=dpmesh_checkpoint, heatmaps=maps, root=standin.PHOTOS,
    )  # fmt: skip
    assert isinstance(made, Path)
    return made


def test_whichever_files_lie_in_between_the_bits_are_the_same(
    bodies: Any, direct: dict[str, np.ndarray], maps: Path, exact: Path, tmp_path: Path
) -> None:
    ways = {
        "to a file": bodies(out=tmp_path / "direct.meshes.h5"),
        "heatmaps": bodies(heatmaps=maps),
        "heatmaps and features": bodies(heatmaps=maps, features=exact),
        "features": bodies(features=exact),
    }
    for way, found in ways.items():
        for name in NAMES:
            np.testing.assert_array_equal(found[name], direct[name], err_msg=f"{way}: {name}")


@pytest.mark.parametrize("batch", [1, 8])
def test_batch_size_changes_no_bit_of_the_network(bodies: Any, direct: dict[str, np.ndarray], batch: int) -> None:
    other = bodies(batch=batch)
    for name in NAMES:
        if name.startswith("smpl/"):
            np.testing.assert_array_equal(other[name], direct[name], err_msg=name)
        scale = max(1.0, float(np.nanmax(np.abs(direct[name]))))  # the stand-in body is metres wide
        np.testing.assert_allclose(other[name], direct[name], rtol=0, atol=1e-5 * scale, err_msg=name)


def test_features_are_no_latents(detections: Path, exact: Path, dpmesh_checkpoint: Path) -> None:
    with pytest.raises(InputError, match="features of dpmesh, not latents"):
        features.run(detections, None, FeaturesParams(), run(), ckpt=dpmesh_checkpoint, latents=exact)


def test_heatmaps_of_other_keypoints_are_used_as_they_are(bodies: Any, direct: Any, maps: Path) -> None:
    with open_artefact(maps) as made:
        columns = {n: made.read(n) for n in made.columns()}
        columns["heatmaps/value"] = columns["heatmaps/value"][:, ::-1]
        groups = {"heatmaps": made.group_attrs("heatmaps")}
        other = in_memory("heatmaps", frames=made.frames, rows=made.rows, columns=columns, group_attrs=groups)
    assert np.nanmax(np.abs(bodies(heatmaps=other)["smpl/body_pose"] - direct["smpl/body_pose"])) > 1e-2


@pytest.mark.parametrize("setting", [{"sigma": 2.0}, {"threshold": 0.3}, {"size": 64}, {"joint_set": "coco17"}])
def test_heatmaps_made_otherwise_are_refused(bodies: Any, detections: Path, setting: dict[str, Any]) -> None:
    other = heatmaps.run(detections, None, HeatmapsParams(**setting))
    with pytest.raises(InputError, match=f"{next(iter(setting))} {next(iter(setting.values()))}, not") as caught:
        bodies(heatmaps=other)
    assert caught.value.hint and "\n" not in caught.value.message


def test_features_of_another_checkpoint_are_refused(
    bodies: Any,
    exact: Path,
    detections: Path,
    recoverer: tuple[DPMeshRecoverer, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, provenance = recoverer
    other = provenance | {"sha256": "0" * 64}
    monkeypatch.setattr(recover, "load", lambda *_: (model, other))
    with pytest.raises(InputError, match=r"made with another checkpoint: .*, not 000000000000") as caught:
        bodies(features=exact)
    assert caught.value.hint
    converted = DPMeshRecoverer(model.model, model.body, source_sha256=provenance["sha256"])
    monkeypatch.setattr(recover, "load", lambda *_: (converted, other))
    bodies(features=exact)  # what was converted from the same file is the same network


@pytest.mark.slow
def test_latents_of_another_autoencoder_are_refused(
    detections: Path, dpmesh_checkpoint: Path, dpmesh_tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    latents = tmp_path / "l.features.h5"
    params = FeaturesParams("dpmesh-latents")
    features.run(detections, latents, params, run(), ckpt=dpmesh_checkpoint, root=standin.PHOTOS)
    second = dict(dpmesh_tensors)  # another checkpoint on the same autoencoder: what latents are for
    second["module.kp_lifting.weight"] = second["module.kp_lifting.weight"] + 0.1
    torch.save(second, tmp_path / "second.pth")
    made = features.run(detections, None, run=run(8), ckpt=tmp_path / "second.pth", latents=latents, root=tmp_path)
    assert isinstance(made, Artefact) and np.isfinite(made.read("features/dpmesh")[:4]).all()
    (name,) = (n for n in second if n.endswith("sd_model.first_stage_model.quant_conv.weight"))
    second[name] = second[name] + 0.1
    torch.save(second, tmp_path / "other.pth")
    with pytest.raises(InputError, match="another autoencoder") as caught:
        features.run(detections, None, run=run(), ckpt=tmp_path / "other.pth", latents=latents, root=tmp_path)
    assert "dpmesh-latents" in caught.value.hint


def test_focal_length_of_the_first_picture_is_a_choice(
    recoverer: tuple[DPMeshRecoverer, dict[str, str]], detections: Path, exact: Path
) -> None:
    """`transl` is then for a camera with that focal length; rotations and shape do not change."""
    model = recoverer[0]
    people = standin.people(detections)
    with open_artefact(exact) as file:
        people.columns = {n: file.read(n) for n in ("features/dpmesh", "features/crop")}
    people.images = []
    own = model(people)
    model.focal = "first"
    first = model(people)
    model.focal = "row"
    ratio = np.hypot(*people.size[0]) / people.K[:, 0, 0]
    assert np.ptp(ratio) > 0.01
    np.testing.assert_allclose(first["smpl/transl"][:, 2], own["smpl/transl"][:, 2] * ratio, rtol=1e-5)
    assert torch.equal(first["smpl/body_pose"], own["smpl/body_pose"])


def test_choices_that_a_network_does_not_have(detections: Path, dpmesh_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="embedded has no choice of focal"):
        recover.run(detections, None, RecoverParams(focal="first"))
    with pytest.raises(UsageError, match="focal mean: no such choice"):
        recover.run(detections, None, RecoverParams(focal="mean"), run(), ckpt=dpmesh_checkpoint)
    with pytest.raises(UsageError, match="precision int8: no such choice"):
        features.run(detections, None, FeaturesParams(precision="int8"), run(), ckpt=dpmesh_checkpoint)


def test_a_converted_file_says_that_its_body_is_another(
    dpmesh_checkpoint: Path, detections: Path, tmp_path: Path
) -> None:
    class Told(type(SILENT)):  # type: ignore[misc]
        def __init__(self) -> None:
            self.warnings: list[str] = []

        def warn(self, text: str) -> None:
            self.warnings.append(text)

    small = convert(dpmesh_checkpoint, tmp_path / "d.safetensors", ConvertParams())
    told = Told()
    params = RecoverParams()
    recover.run(detections, tmp_path / "m.h5", params, run(report=told, dry_run=True), ckpt=small, root=standin.PHOTOS)
    assert [w for w in told.warnings if "--body smpl" in w and "embedded body" in w]
    quiet = Told()
    recover.run(
        detections,
        tmp_path / "m.h5",
        RecoverParams(body="embedded"),
        run(report=quiet, dry_run=True),
        ckpt=small,
    )
    assert not quiet.warnings


# ---- memory

PEAK = """
import resource, sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from stages import features
from stages.params import FeaturesParams
from stages.artefacts.table import in_memory
from stages.artefacts.hdf5 import open_artefact
from stages.models.dpmesh.network import DPMesh
from stages.engine.job import RunOptions
if sys.argv[3] == "stand-in":
    features_of = lambda self, latent, *_: {"merged": torch.rand(len(latent), 2048, 8, 8)}
    DPMesh.features = features_of
table = open_artefact(sys.argv[1])
for n in (64, 384):
    index = np.arange(n) % 2
    frames, rows = table.frames, {k: v[index] for k, v in table.rows.items()}
    given = {k: table.read(k)[index] for k in table.columns()}
    people = in_memory("detections", frames=frames, rows=rows, columns=given, group_attrs={"keypoints": table.group_attrs("keypoints")})
    crop = np.tile(np.float32([[1, 0, 0], [0, 1, 0]]), (n, 1, 1))
    columns = {"features/latent": np.ones((n, 4, 32, 32), np.float32), "features/crop": crop}
    latents = in_memory("features", frames=frames, rows=rows, columns=columns)
    out = Path(sys.argv[2]).with_name(f"{n}.features.h5")
    features.run(people, out, FeaturesParams(precision="float32"), RunOptions(device="cpu"), ckpt=Path(sys.argv[2]), latents=latents)
    print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, out.stat().st_size >> 20)
"""  # noqa: E501


@pytest.mark.parametrize("network", ["stand-in", pytest.param("tiny", marks=pytest.mark.slow)])
def test_memory_is_bounded_by_the_batch(detections: Path, tmp_path: Path, network: str) -> None:
    """A process that has made 64 rows of features (34 MB) needs no more for 384 (201 MB)."""
    torch.manual_seed(0)
    tiny = own_names(DPMesh(Config(width=32, vae_width=32)))
    write_checkpoint(tmp_path / "tiny.safetensors", tiny, {})
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(detections), str(tmp_path / "tiny.safetensors"), network],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (few, small, _), (many, large, size) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert (few, many) == (64, 384) and size > 190
    assert large - small < 40, f"{small} MB for {few} rows, {large} for {many}"
