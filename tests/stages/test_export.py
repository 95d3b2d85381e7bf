"""hmr export: GLB skinning and animation, AMASS round trip, OBJ, licences, nobody."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from stages import export
from stages.artefacts.kinds import FAILED
from stages.artefacts.table import Artefact, in_memory
from stages.engine.job import RunOptions
from stages.errors import AssetError, InputError, UsageError
from stages.formats.amass import from_amass
from stages.loaders.bodies import BodyLoader
from stages.params import ExportParams
from stages.smpl.body import Body, load_body
from tests.helpers.gltf_reader import Gltf
from tests.helpers.people import images_with_people

CPU = RunOptions(device="cpu")
TO_GLTF = np.array([1.0, -1.0, -1.0])
TENTH = 1e-4  # metres


def meshes(folder: Path, n: int, frames: int = 1, seed: int = 0) -> Artefact:
    return images_with_people(folder, n, frames, seed)[0]


def walk(folder: Path, frames: int = 12, fps: float = 10.0) -> Artefact:
    """One video, two people: track 5 in all frames, track 9 in every frame but 4 to 6."""
    table = meshes(folder, 2, frames)
    table.frames["name"][:] = [f"walk.mp4#{k:06d}" for k in range(frames)]
    table.frames["source"][:] = 0
    table.frames["time"][:] = np.arange(frames) / fps
    table.rows["track"][:] = [5, 9] * frames
    gone = (table.rows["track"] == 9) & np.isin(table.rows["frame"], [4, 5, 6])
    table.rows["status"][gone] = FAILED
    return table


def test_photo_glb_opens_in_trimesh_with_the_posed_vertices(tmp_path: Path) -> None:
    table = meshes(tmp_path, 3)
    made = export.run(table, tmp_path / "out", ExportParams(), CPU)
    assert [Path(f).name for f in made["files"]] == ["picture 0.glb"]
    scene = trimesh.load(made["files"][0])
    expected = BodyLoader(table).vertices(np.arange(3)).numpy() * TO_GLTF
    assert len(scene.geometry) == 3
    for row in range(3):
        transform, geometry = scene.graph[f"person{row}_body"]
        mesh = scene.geometry[geometry]
        np.testing.assert_allclose(trimesh.transform_points(mesh.vertices, transform), expected[row], atol=TENTH)
        np.testing.assert_array_equal(mesh.faces, load_body().faces.numpy())
        assert mesh.is_watertight and mesh.volume > 0.02  # faces outward
        assert (scene.graph["pelvis"][0][:3, 3] != 0).any()


@pytest.mark.parametrize("bind", ["pose", "t"])
def test_skinning_by_the_file_alone_gives_the_body(tmp_path: Path, bind: str) -> None:
    table = meshes(tmp_path, 2)
    path = tmp_path / "one.glb"
    export.run(table, path, ExportParams(bind=bind), CPU)
    gltf = Gltf(path)
    expected = BodyLoader(table).vertices(np.arange(2)).numpy() * TO_GLTF
    for row in range(2):
        np.testing.assert_allclose(gltf.skinned(f"person{row}"), expected[row], atol=TENTH)
        position = gltf.array(gltf.primitive(f"person{row}")["attributes"]["POSITION"])
        standing = np.abs(position - expected[row]).max() < TENTH
        assert standing == (bind == "pose")
    joints = gltf.json["skins"][0]["joints"]
    assert [gltf.nodes[j]["name"] for j in joints][:3] == ["pelvis", "left_hip", "right_hip"] and len(joints) == 24
    # Joint nodes stand where the body's joints are.
    at = gltf.transforms({})[joints][:, :3, 3]
    np.testing.assert_allclose(at, table.read("joints/xyz")[0] * TO_GLTF, atol=TENTH)


def test_video_glb_is_animated_and_right_at_every_keyframe(tmp_path: Path) -> None:
    table = walk(tmp_path)
    path = tmp_path / "walk.glb"
    export.run(table, path, ExportParams(), CPU)
    gltf = Gltf(path)
    assert sorted(a["name"] for a in gltf.json["animations"]) == ["track5", "track9"]
    body = load_body()
    for track, count in ((5, 12), (9, 9)):
        rows = np.flatnonzero((table.rows["track"] == track) & (table.rows["status"] == 0))
        times = gltf.times(f"track{track}")
        np.testing.assert_allclose(times, table.frames["time"][table.rows["frame"][rows]], atol=1e-6)
        assert len(times) == count
        smpl = BodyLoader(table).smpl(rows)
        mean = smpl["betas"].mean(0, keepdim=True).expand(count, -1)
        with torch.no_grad():
            pelvis = body.rest_joints(smpl["betas"])[:, 0] - body.rest_joints(mean)[:, 0]
            made = body(smpl["global_orient"], smpl["body_pose"], mean, smpl["transl"] + pelvis)
        for key in (0, 3, count - 1):
            vertices = gltf.skinned(f"track{track}", gltf.channels(f"track{track}", key))
            np.testing.assert_allclose(vertices, made.vertices[key].numpy() * TO_GLTF, atol=TENTH)
        animation = next(a for a in gltf.json["animations"] if a["name"] == f"track{track}")
        for channel in animation["channels"]:
            values = gltf.array(animation["samplers"][channel["sampler"]]["output"])
            if channel["target"]["path"] == "rotation":
                np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, atol=1e-5)
                assert (np.sum(values[1:] * values[:-1], 1) > 0).all()
    assert len(trimesh.load(path).geometry) == 2
    # Nobody shares a parent with another's bones, or Blender makes one armature of both.
    roots = [gltf.nodes[n] for n in gltf.json["scenes"][0]["nodes"]]
    assert [r["name"] for r in roots] == ["camera", "track5", "track9"]
    assert all(len(r["children"]) == 2 for r in roots[1:])


def test_camera_of_the_glb_sees_what_the_photo_shows(tmp_path: Path) -> None:
    table = meshes(tmp_path, 1)
    path = tmp_path / "one.glb"
    export.run(table, path, ExportParams(), CPU)
    gltf = Gltf(path)
    camera = gltf.json["cameras"][0]["perspective"]
    vertices = gltf.skinned("person0")
    assert (vertices[:, 2] < 0).all()  # in front of a glTF camera
    half = np.tan(camera["yfov"] / 2)
    y = vertices[:, 1] / -vertices[:, 2] / half  # [-1, 1], up
    x = vertices[:, 0] / -vertices[:, 2] / half / camera["aspectRatio"]
    shown = np.stack([(x + 1) * 160 - 0.5, (1 - y) * 120 - 0.5], 1)
    np.testing.assert_allclose(shown.min(0), table.rows["box"][0, :2], atol=0.1)
    np.testing.assert_allclose(shown.max(0), table.rows["box"][0, 2:], atol=0.1)
    # Upright: the head is above the pelvis.
    at = gltf.transforms({})
    names = [n.get("name") for n in gltf.nodes]
    assert at[names.index("head"), 1, 3] > at[names.index("pelvis"), 1, 3] + 0.3


def test_amass_round_trip(tmp_path: Path) -> None:
    table = meshes(tmp_path, 3, frames=2)
    made = export.run(table, tmp_path / "out", ExportParams(format="npz"), CPU)
    assert len(made["files"]) == 6
    for file in made["files"]:
        arrays = dict(np.load(file, allow_pickle=False))
        assert arrays["poses"].shape == (1, 156) and arrays["trans"].shape == (1, 3) and arrays["betas"].shape == (10,)
        assert float(arrays["mocap_framerate"]) == 30 and str(arrays["gender"]) == "neutral"
        back, row = from_amass(arrays, load_body()), int(arrays["rows"][0])
        body = load_body()
        with torch.no_grad():
            again = body(**{k: torch.from_numpy(v) for k, v in back.items()}).vertices[0].numpy()
        np.testing.assert_allclose(again, BodyLoader(table).vertices(np.array([row]))[0].numpy(), atol=1e-5)
        for name in ("body_pose", "betas", "transl"):
            np.testing.assert_allclose(back[name][0], table.read(f"smpl/{name}")[row], atol=1e-5)


def test_amass_world_is_upright(tmp_path: Path) -> None:
    """As a reader of AMASS uses the file: z up, the head over the feet, away from the camera along y."""
    table = meshes(tmp_path, 1)
    made = export.run(table, tmp_path / "one.npz", ExportParams(), CPU)
    arrays = np.load(made["files"][0])
    pose = torch.tensor(arrays["poses"][:, :66].reshape(1, 22, 3))
    body_pose = torch.cat([pose[:, 1:], torch.zeros(1, 2, 3)], 1)
    with torch.no_grad():
        out = load_body()(pose[:, 0], body_pose, torch.tensor(arrays["betas"])[None], torch.tensor(arrays["trans"]))
    names = list(load_body().joint_names)
    head, foot = (out.joints[0, names.index(n)] for n in ("head", "left_ankle"))
    assert head[2] > foot[2] + 1.0 and 3 < head[1] < 5
    camera = table.read("joints/xyz")[0, names.index("head")]
    np.testing.assert_allclose(head.numpy(), [camera[0], camera[2], -camera[1]], atol=1e-4)


def test_tracks_become_one_even_sequence_or_are_cut_at_long_gaps(tmp_path: Path) -> None:
    table = walk(tmp_path)
    made = export.run(table, tmp_path / "a", ExportParams(format="npz"), CPU)
    assert [Path(f).name for f in made["files"]] == ["walk_track5.npz", "walk_track9.npz"]
    whole, gap = (np.load(f) for f in made["files"])
    assert whole["poses"].shape == (12, 156) and float(whole["mocap_framerate"]) == 10 and whole["observed"].all()
    assert gap["poses"].shape == (12, 156) and (~gap["observed"]).nonzero()[0].tolist() == [4, 5, 6]
    assert (gap["rows"][4:7] == -1).all()
    # Filled places lie on the straight way between their neighbours.
    pelvis = gap["trans"]
    np.testing.assert_allclose(pelvis[5], (pelvis[3] + pelvis[7]) / 2, atol=0.02)
    made = export.run(table, tmp_path / "b", ExportParams(format="npz", max_gap=0.2), CPU)
    assert [Path(f).name for f in made["files"]] == ["walk_track5.npz", "walk_track9_0.npz", "walk_track9_1.npz"]
    assert [len(np.load(f)["poses"]) for f in made["files"]] == [12, 4, 5]


def test_obj_is_the_posed_mesh(tmp_path: Path) -> None:
    table = meshes(tmp_path, 2)
    made = export.run(table, tmp_path / "out", ExportParams(format="obj"), CPU)
    assert [Path(f).name for f in made["files"]] == ["picture 0_person0.obj", "picture 0_person1.obj"]
    mesh = trimesh.load(made["files"][1], process=False)
    np.testing.assert_allclose(mesh.vertices, BodyLoader(table).vertices(np.array([1]))[0].numpy() * TO_GLTF, atol=2e-6)
    assert mesh.is_watertight and mesh.volume > 0.02


def test_failed_rows_are_left_out_and_nobody_is_fine(tmp_path: Path) -> None:
    table = meshes(tmp_path, 2)
    table.rows["status"][0] = FAILED
    made = export.run(table, tmp_path / "a", ExportParams(format="glb,npz,obj"), CPU)
    assert made["people"] == 1 and len(made["files"]) == 3
    for n, frames in ((0, 2), (0, 0)):
        made = export.run(meshes(tmp_path, n, frames), tmp_path / f"b{frames}", ExportParams(format="glb,npz"), CPU)
        assert made["files"] == [] and made["people"] == 0
    assert export.run(meshes(tmp_path, 0, 1), tmp_path / "nobody.glb", ExportParams(), CPU)["files"] == []


def body_of_smpl_licence() -> Body:
    """A body with pose blend shapes, under terms that forbid passing on its shapes."""
    free = load_body()
    generator = torch.Generator().manual_seed(1)
    return Body.from_arrays(
        free.v_template, free.shapedirs, 0.002 * torch.randn(6890, 3, 207, generator=generator), free.J_regressor,
        free.weights, free.parents, free.faces, name="standin", licence="SMPL model licence, non-commercial",
    )  # fmt: skip


def test_licensed_bodies_leave_only_on_purpose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.loaders.bodies.load_body", lambda *_: body_of_smpl_licence())
    table = meshes(tmp_path, 1)
    with pytest.raises(AssetError, match="standin"):
        export.run(table, tmp_path / "x.glb", ExportParams(), CPU)
    assert not (tmp_path / "x.glb").exists()
    assert export.run(table, tmp_path / "x.npz", ExportParams(), CPU)["note"] == ""
    made = export.run(table, tmp_path / "x.glb", ExportParams(licensed_body=True), CPU)
    assert "licence" in made["note"]
    gltf = Gltf(tmp_path / "x.glb")
    assert "standin" in gltf.json["asset"]["copyright"]
    # Bound in the pose, pose blend shapes are exact too.
    expected = BodyLoader(table).vertices(np.array([0]))[0].numpy() * TO_GLTF
    np.testing.assert_allclose(gltf.skinned("person0"), expected, atol=TENTH)


def test_vertices_without_parameters(tmp_path: Path) -> None:
    table = meshes(tmp_path, 2)
    vertices = BodyLoader(table).vertices(np.arange(2)).numpy()
    bare = in_memory(
        "meshes",
        frames=table.frames,
        rows=table.rows,
        columns={"vertices/xyz": vertices},
        group_attrs={"vertices": {"body_model": "embedded"}},
    )
    with pytest.raises(InputError, match="npz"):
        export.run(bare, tmp_path / "out", ExportParams(format="npz"), CPU)
    made = export.run(bare, tmp_path / "out", ExportParams(format="glb,obj"), CPU)
    scene = trimesh.load(made["files"][0])
    np.testing.assert_allclose(scene.geometry["person1"].vertices, vertices[1] * TO_GLTF, atol=TENTH)


def test_wrong_usage_is_named_before_anything_is_written(tmp_path: Path) -> None:
    table = meshes(tmp_path, 1, frames=2)
    for params, out in (
        (ExportParams(format="fbx"), tmp_path / "out"),
        (ExportParams(bind="a"), tmp_path / "out"),
        (ExportParams(axes="nasa"), tmp_path / "out"),
        (ExportParams(), tmp_path / "two.glb"),
    ):
        with pytest.raises(UsageError):
            export.run(table, out, params, CPU)
        assert not out.exists()
    with pytest.raises(UsageError):
        export.run(table, tmp_path / "out", ExportParams(), dataclasses.replace(CPU, fresh=True))
