"""`hmr body-model`: add SMPL's own files, list what is there, export the free body for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hmr_cli._errors import say
from hmr_cli._flags import Json, Quiet
from hmr_cli._output import print_result
from stages.errors import UsageError

app = typer.Typer(no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="SMPL's .pkl (chumpy inside or not) or an .npz.", show_default=False)]
Name = Annotated[str, typer.Option(help="What to call it afterwards (--body NAME).")]
Gender = Annotated[str | None, typer.Option(help="neutral, female or male; by default what the file's name says.")]
Regressor = Annotated[
    list[str] | None, typer.Option(help="JOINT_SET=FILE.npy, a (joints, 6890) matrix for this mesh, e.g. h36m17=J.npy.")
]
Which = Annotated[str, typer.Argument(help="embedded, or a file made by hmr body-model export.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The .pkl to write.", show_default=False)]


@app.callback()
def body_model() -> None:
    """The bodies that meshes are made of: the free embedded one, and SMPL's own files once they are added.

    Examples:

        hmr body-model add basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl

        hmr body-model list

        hmr body-model export -o body.pkl
    """


@app.command()
def add(
    file: File,
    name: Name = "smpl",
    gender: Gender = None,
    regressor: Regressor = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a body file once into the cache. Nothing in the file is executed; the result keeps its SHA-256.

    Examples:

        hmr body-model add SMPL_python_v.1.1.0/smpl/models/basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl

        hmr body-model add basicModel_f_lbs_10_207_0_v1.0.0.pkl --gender female --regressor h36m17=J_regressor_h36m.npy
    """
    from stages.keypoints.joint_sets import SETS
    from stages.smpl import body_files, mesh_sampling
    from stages.smpl.body import load_body

    if gender is not None and gender not in body_files.GENDERS:
        raise UsageError(f"--gender {gender}", f"one of {', '.join(body_files.GENDERS)}")
    if name == "embedded" or not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name[0] == ".":
        raise UsageError(f"--name {name}", "letters, digits, - _ . ; embedded is taken")
    regressors: dict[str, Path] = {}
    for text in regressor or ():
        joint_set, _, path = text.partition("=")
        if joint_set not in SETS or not path:
            raise UsageError(f"--regressor {text}", f"JOINT_SET=FILE.npy with one of {', '.join(SETS)}")
        regressors[joint_set] = Path(path)
    target = body_files.add(file, name, gender, regressors)
    mesh_sampling.store(load_body(str(target)))
    if not quiet:
        say(f"use it with --body {name}; licence and SHA-256 of the source are kept inside")
    print_result({"name": name, "out": str(target)} if as_json else target, as_json=as_json)


@app.command(name="list")
def list_(as_json: Json = False, quiet: Quiet = False) -> None:
    """The embedded body and those added: name, gender, mesh topology, licence, where.

    Examples:

        hmr body-model list

        hmr body-model list --json | jq '.bodies[].name'
    """
    from stages.smpl import body_files

    bodies = body_files.listed()
    if as_json:
        print_result({"folder": str(body_files.folder()), "bodies": bodies}, as_json=True)
        return
    for body in bodies:
        state = body["error"] or f"{body['gender']}, {body['vertices']} vertices, {body['topology']}, {body['licence']}"
        print(f"{body['name']}: {state}")
        print(f"  {body['path']}")


@app.command()
def export(out: Out, which: Which = "embedded", as_json: Json = False, quiet: Quiet = False) -> None:
    """Write the free body as a pickle that smplx.SMPL loads unchanged. SMPL's own arrays are never written out.

    In Python: d = pickle.load(file); smplx.SMPL(path, vertex_ids=dict(zip(d["vertex_id_names"], d["vertex_ids"]))).
    Without vertex_ids smplx picks nose and ears at SMPL's vertex numbers, which are other places on this mesh.

    Examples:

        hmr body-model export -o body.pkl
    """
    from stages.smpl import body_files

    arrays = body_files.read_arrays(body_files.find(which))
    if arrays["about"]["topology"] == "smpl":
        raise UsageError(
            f"{which} is SMPL itself: its arrays are under their own licence and are not written out",
            "export the free body (embedded), or use your own SMPL file with smplx",
        )
    result: Any = body_files.write_smplx_pickle(arrays, out)
    print_result({"out": str(result)} if as_json else result, as_json=as_json)
