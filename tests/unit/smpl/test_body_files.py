"""Body files: what is read, what is refused and with which words; nothing in a pickle is ever executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest

from stages.errors import AssetError
from stages.files.pickles import Refused, load_arrays
from stages.smpl import body_files as body_file
from stages.smpl.body import load_body, to_body
from tests.helpers import body_files


@pytest.fixture(scope="module")
def content():
    return body_files.arrays()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HMR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("protocol", [2, 4])
def test_plain_and_chumpy_pickles_give_the_same_arrays(tmp_path, content, protocol):
    plain = body_file.read_arrays(body_files.write(tmp_path / "plain.pkl", content, protocol))
    path = tmp_path / "chumpy.pkl"
    path.write_bytes(body_files.chumpy_like(content, min(protocol, 2)))
    chumpy = body_file.read_arrays(path)
    for key in ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "f"):
        assert np.array_equal(plain[key], chumpy[key]), key
        assert np.allclose(plain[key], content[key], atol=1e-6)
    assert plain["about"]["topology"] == "smpl" and len(plain["about"]["source_sha256"]) == 64


def test_the_name_of_the_file_does_not_matter(tmp_path):
    for name in ("body.pkl", "body"):
        (tmp_path / name).write_bytes(body_file.EMBEDDED.read_bytes())
        assert body_file.read_arrays(tmp_path / name)["about"]["topology"] == "hmr-body-1"


def test_unknown_chumpy_node_is_refused_by_name(tmp_path, content):
    data = body_files.chumpy_like(content, 2).replace(b"chumpy.reordering\nSelect", b"chumpy.reordering\nTensor")
    (tmp_path / "x.pkl").write_bytes(data)
    with pytest.raises(AssetError) as error:
        body_file.read_arrays(tmp_path / "x.pkl")
    assert "chumpy.reordering.Tensor" in error.value.message


class Bomb:
    """Touches a file when it is unpickled by the full unpickler."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["system", "exec", "open", "getattr", "numpy", "reduce-numpy-load"])
def test_hostile_pickles_do_nothing(tmp_path, protocol, kind):
    mark = tmp_path / "mark"
    bomb = {
        "system": Bomb(os.system, f"touch {mark}"),
        "exec": Bomb(exec, f"open({str(mark)!r}, 'w')"),
        "open": Bomb(open, str(mark), "w"),
        "getattr": Bomb(getattr, os, "system"),
        "numpy": Bomb(np.savetxt, str(mark), [1.0]),
        "reduce-numpy-load": Bomb(np.fromfile, "/etc/hostname"),
    }[kind]
    try:
        data = pickle.dumps({"v_template": np.zeros((5, 3)), "J": bomb}, protocol=protocol)
    except (pickle.PicklingError, TypeError):
        data = pickle.dumps({"J": bomb.call}, protocol=protocol)
    path = tmp_path / "smpl.pkl"
    path.write_bytes(data)
    with pytest.raises(AssetError) as error:
        body_file.read_arrays(path)
    assert not mark.exists()
    assert "nothing in it was executed" in error.value.message and "\n" not in error.value.message
    assert error.value.exit_code == 4


def test_the_bomb_would_have_worked(tmp_path):
    pickle.loads(pickle.dumps(Bomb(os.system, f"touch {tmp_path / 'mark'}")))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n(S'/etc/passwd'\ntR.",
        b"cchumpy.ch\nos.system\n(S'true'\ntR.",
        b"\x80\x02P1\n.",
        b"c__builtin__\neval\n(S'1'\ntR.",
    ],
)
def test_hand_written_payloads(payload):
    with pytest.raises((Refused, ValueError)):
        load_arrays(payload)


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.99])
def test_cut_pickle(tmp_path, content, cut):
    data = pickle.dumps(content, protocol=2)
    (tmp_path / "x.pkl").write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(AssetError) as error:
        body_file.read_arrays(tmp_path / "x.pkl")
    assert "read to its end" in error.value.message


def test_cut_npz_zip_html_pointer_empty_absent(tmp_path, content):
    def message(data: bytes, name: str = "basicModel_neutral.pkl") -> str:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(AssetError) as error:
            body_file.read_arrays(tmp_path / name)
        assert error.value.hint and "\n" not in error.value.message
        return error.value.message

    embedded = body_file.EMBEDDED.read_bytes()
    assert "cut short" in message(embedded[: len(embedded) // 2])
    damaged = bytearray(embedded)
    damaged[5000:9000] = bytes(4000)
    assert "npz" in message(bytes(damaged))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("models/basicModel_f_lbs_10_207_0_v1.0.0.pkl", b"x")
    assert "zip archive (holding models/basicModel_f" in message(archive.getvalue())
    assert "web page" in message(b"<!DOCTYPE html><html>")
    assert "LFS" in message(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    assert "empty" in message(b"")
    assert "neither" in message(b"\x89PNG....")
    assert "not a dictionary" in message(pickle.dumps([1, 2], protocol=2))
    with pytest.raises(AssetError) as error:
        body_file.read_arrays(tmp_path / "absent.pkl")
    assert "no such file" in error.value.message and "6890 vertices" in error.value.hint


def test_object_array_in_npz_is_not_unpickled(tmp_path, content):
    np.savez(tmp_path / "x.npz", v_template=np.array([{}], dtype=object))
    with pytest.raises(AssetError) as error:
        body_file.read_arrays(tmp_path / "x.npz")
    assert "pickle" in error.value.message


def test_others_of_the_family_are_named(tmp_path, content):
    def message(**changed) -> str:
        with pytest.raises(AssetError) as error:
            body_file.read_arrays(body_files.write(tmp_path / "x.pkl", content | changed))
        assert "6890 vertices, 24 joints" in error.value.hint
        return error.value.message

    big = {"v_template": np.zeros((10475, 3)), "weights": np.zeros((10475, 55))}
    assert "SMPL-X" in message(**big) and "10475 vertices, 55 joints" in message(**big)
    assert "SMPL+H" in message(weights=np.zeros((6890, 52)))
    assert "shapedirs has shape (6890, 3, 5)" in message(shapedirs=content["shapedirs"][..., :5])
    assert "not finite" in message(v_template=np.full((6890, 3), np.nan))
    assert "sum to one" in message(weights=content["weights"] * 0.9)
    tree = content["kintree_table"].copy()
    tree[0, 5] = 20
    assert "kinematic tree" in message(kintree_table=tree)
    assert "posedirs has shape" in message(posedirs=np.ones((6890, 3, 10)))
    assert "entries" in message(f=content["f"] + 1)
    assert "numbers" in message(v_template=np.array(["a"] * 6890))
    with pytest.raises(AssetError) as error:
        body_file.read_arrays(body_files.write(tmp_path / "x.pkl", {"lmk_faces_idx": np.zeros(3)}))
    assert "SMPL-X" in error.value.message and "missing" in error.value.message


def test_genders(tmp_path, content, cache):
    path = body_files.write(tmp_path / "basicModel_f_lbs_10_207_0_v1.0.0.pkl", content)
    assert body_file.read_arrays(path)["about"]["gender"] == "female"
    with pytest.raises(AssetError) as error:
        body_file.read_arrays(path, gender="male")
    assert "its name says female" in error.value.message
    body_file.add(path, "smpl")
    assert load_body("smpl", "female").gender == "female"
    with pytest.raises(AssetError) as error:
        load_body("smpl", "neutral")
    assert "smpl (female)" in error.value.hint
    with pytest.raises(AssetError) as error:
        load_body("embedded", "male")
    assert "neutral" in error.value.message


def test_added_body_keeps_arrays_source_and_regressors(tmp_path, content, cache):
    source = body_files.write(
        tmp_path / "SMPL_NEUTRAL.pkl", content | {"shapedirs": np.repeat(content["shapedirs"], 3, 2)}
    )
    matrix = np.random.default_rng(0).random((17, 6890)).astype(np.float32)
    np.save(tmp_path / "h36m.npy", matrix)
    out = body_file.add(source, "smpl", regressors={"h36m17": tmp_path / "h36m.npy"})
    import hashlib

    with np.load(out, allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        assert about["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
        assert about["source"] == "SMPL_NEUTRAL.pkl" and str(tmp_path) not in json.dumps(about)
        assert file["shapedirs"].shape == (6890, 3, 10)
    body = load_body("smpl")
    assert body.topology == "smpl" and np.array_equal(body.regressor("h36m17").numpy(), matrix)
    assert body.posedirs is not None
    assert [b["name"] for b in body_file.listed()] == ["embedded", "smpl"]
    np.save(tmp_path / "bad.npy", matrix[:5])
    with pytest.raises(AssetError):
        body_file.add(source, "smpl", regressors={"h36m17": tmp_path / "bad.npy"})


def test_exported_pickle_comes_back_as_it_was(tmp_path):
    arrays = body_file.read_arrays(body_file.EMBEDDED)
    path = body_file.write_smplx_pickle(arrays, tmp_path / "out.pkl")
    again = body_file.read_arrays(path)
    assert again["about"] == arrays["about"]
    for key in ("v_template", "shapedirs", "weights", "J_regressor", "f", "landmarks", "vertex_ids"):
        assert np.array_equal(again[key], arrays[key]), key
    assert to_body(again).regressor("coco17").shape == (17, 6890)
