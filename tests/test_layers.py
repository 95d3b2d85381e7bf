"""Who may import whom (docs/design.md, section 3), as an ordered list and a table, read from the syntax trees.

Every import counts: at the top, in a function, under TYPE_CHECKING. A rule that the code still breaks has its offenders
in KNOWN, one line each; a line that is no longer needed fails too, so KNOWN can only shrink.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The files directly under stages/ that are no commands.
BESIDE = ("__init__", "errors", "pipeline")
VERBS = tuple(f"stages.{p.stem}" for p in sorted(ROOT.glob("stages/*.py")) if p.stem not in BESIDE)

# Each room may import the rooms of earlier lines and itself; nothing of later lines, nothing else on its own line.
# A module belongs to the longest name here that begins its own.
ORDER: tuple[tuple[str, ...], ...] = (
    ("stages.errors", "stages.models.tables"),
    ("stages.params", "stages.files", "stages.keypoints", "stages.artefacts"),
    ("stages.geometry", "stages.media"),
    ("stages.smpl",),
    ("stages.models", "stages.engine"),
    ("stages.loaders", "stages.synthetic", "stages.datasets", "stages.refinement"),
    ("stages.visualization",),
    ("stages.formats", "stages.evaluation"),
    ("stages.training",),
    VERBS,
    ("stages.pipeline",),
    ("stages",),  # stages/__init__.py: what Python users may rely on
    ("hmr_cli._errors",),
    ("hmr_cli._output",),
    ("hmr_cli._flags",),
    ("hmr_cli",),
)
# package or function -> the only files that may use it
ONLY: dict[str, tuple[str, ...]] = {
    "h5py": ("stages/artefacts/hdf5.py",),
    "cv2": ("stages/geometry/crops.py", "stages/visualization/draw.py"),
    "pickle": ("stages/files/pickles.py", "stages/smpl/body_files.py"),
    "os.replace": ("stages/files/atomic.py",),
    "os.rename": ("stages/files/locks.py",),
    "shutil.move": ("stages/files/atomic.py",),
    "pathlib.Path.replace": ("stages/files/atomic.py",),
    "typer": ("hmr_cli/",),
    "rich": ("hmr_cli/",),
    "diffusers": ("stages/models/dpmesh/",),
    "peft": ("stages/models/dpmesh/",),
    "mmpose": ("stages/models/detectors/mmpose.py",),
    "mmengine": ("stages/models/detectors/mmpose.py",),
    "anny": ("stages/training/free_body/build.py",),
    # smplx and chumpy are non-commercial, torchvision is heavy: none is ever under the product.
    "smplx": (),
    "chumpy": (),
    "torchvision": (),
}
# In a system's folder only the adapters know checkpoints and columns; the networks know tensors.
SHARED_BY_SYSTEMS = ("backbones", "pct")
ADAPTERS = ("recoverer", "recoverers", "extractors", "refiner", "weights", "checkpoint_names")  # and from_...
ADAPTERS_ONLY = ("stages.files", "stages.artefacts")
LONGEST = 400  # lines of a file

# rule -> what still breaks it. An entry that breaks nothing any more fails the test: take it out.
KNOWN: dict[str, set[str]] = {}


@dataclasses.dataclass(frozen=True)
class Use:
    """One import or one use of a name: where it stands, and the dotted name."""

    file: str
    line: int
    name: str


def module_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix().removesuffix(".py").replace("/", ".").removesuffix(".__init__")


FILES = sorted([*ROOT.glob("stages/**/*.py"), *ROOT.glob("hmr_cli/**/*.py")])
MODULES = {module_of(path): path for path in FILES}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path) -> tuple[Use, ...]:
    """Everything imported in the file: `from a import b`, `import a.b` and `import_module("a.b")` are all a.b."""
    here, uses = name_of(path), []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            uses += [Use(here, node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{here}:{node.lineno}: relative import"
            uses += [Use(here, node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            uses += [Use(here, node.lineno, str(a.value)) for a in node.args[:1] if isinstance(a, ast.Constant)]
    return tuple(uses)


def called(node: ast.Call) -> str:
    """The last name of what is called: f of f(), a.f() and a.b.f()."""
    return getattr(node.func, "attr", "") or getattr(node.func, "id", "")


def target(name: str) -> str | None:
    """The module of this tree that an imported name comes from; None for other packages."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def inner_imports(path: Path) -> list[tuple[Use, str]]:
    """Imports of modules of this tree, with the module."""
    return [(use, module) for use in imports(path) if (module := target(use.name))]


def room_of(module: str) -> tuple[int, str]:
    """(line of ORDER, room)"""
    fitting = [
        (len(room), level, room)
        for level, rooms in enumerate(ORDER)
        for room in rooms
        if module == room or (module.startswith(f"{room}.") and room != "stages")
    ]
    assert fitting, f"{module} stands in no line of ORDER"
    _, level, room = max(fitting)
    return level, room


def check(rule: str, offenders: dict[str, str]) -> None:
    """Fail on offenders that are not KNOWN, and on KNOWN ones that offend no longer. offenders: key -> message."""
    known = KNOWN.get(rule, set())
    new = [message for key, message in sorted(offenders.items()) if key not in known]
    assert not new, f"{rule}:\n" + "\n".join(new)
    assert not known - set(offenders), f"{rule}: no offender any more, take out of KNOWN: {known - set(offenders)}"


def test_rooms_import_only_rooms_before_them() -> None:
    offenders = {}
    for module, path in MODULES.items():
        level, room = room_of(module)
        for use, other in inner_imports(path):
            at, theirs = room_of(other)
            if at > level or (at == level and theirs != room):
                offenders[f"{use.file} -> {other}"] = f"{use.file}:{use.line} ({room}) imports {use.name} ({theirs})"
    check("order", offenders)


def test_no_circles_between_files() -> None:
    graph = {module: {other for _, other in inner_imports(path)} - {module} for module, path in MODULES.items()}
    check("circles", {" ".join(sorted(c)): f"circle: {', '.join(sorted(c))}" for c in circles(graph)})


def circles(graph: dict[str, set[str]]) -> Iterator[set[str]]:
    """The strongly connected components with more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(node: str) -> Iterator[set[str]]:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                yield from visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            component = set(stack[at:])
            del stack[at:]
            if len(component) > 1:
                yield component

    for node in sorted(graph):
        if node not in index:
            yield from visit(node)


def test_each_package_is_used_only_where_it_may_be() -> None:
    offenders = {}
    for path in FILES:
        for use in [*imports(path), *attributes(path), *renames(path)]:
            for package, places in ONLY.items():
                if (use.name == package or use.name.startswith(f"{package}.")) and not use.file.startswith(places):
                    offenders[f"{use.file}: {package}"] = f"{use.file}:{use.line} uses {package}"
    check("only here", offenders)


def attributes(path: Path) -> list[Use]:
    """`module.name` wherever `module` was bound by an import: os.replace, jobs._private."""
    full: dict[str, str] = {}  # local name -> what it stands for
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names = [(a.asname, a.name) if a.asname else (a.name.split(".")[0],) * 2 for a in node.names]
            full |= dict(names)
        elif isinstance(node, ast.ImportFrom):
            full |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return [
        Use(name_of(path), node.lineno, f"{full[node.value.id]}.{node.attr}")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in full
    ]


def renames(path: Path) -> list[Use]:
    """Path.replace and Path.rename: calls of a method `replace` or `rename` with one argument (str.replace has two)."""
    return [
        Use(name_of(path), node.lineno, "pathlib.Path.replace")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("replace", "rename") and len(node.args) == 1 and not node.keywords
    ]  # fmt: skip


def test_private_names_stay_in_their_module() -> None:
    offenders = {}
    for path in FILES:
        here = module_of(path)
        for use in [*imports(path), *attributes(path)]:
            module = target(use.name)
            rest = use.name.removeprefix(module or "").lstrip(".")
            if module and module != here and rest.startswith("_") and not rest.startswith("__"):
                offenders[f"{use.file}: {use.name}"] = f"{use.file}:{use.line} imports the private {use.name}"
            elif module and "._" in module and module.split("._")[0] != here.split(".")[0]:
                offenders[f"{use.file}: {module}"] = f"{use.file}:{use.line} imports {module} from outside its package"
    check("private", offenders)


def test_systems_know_neither_each_other_nor_files() -> None:
    siblings = {p.parent.name for p in ROOT.glob("stages/models/*/__init__.py")} - set(SHARED_BY_SYSTEMS)
    assert siblings >= {"dpmesh", "scorehmr", "postometro", "embedded"}
    offenders = {}
    for path in FILES:
        parts = path.relative_to(ROOT).parts
        if parts[:2] != ("stages", "models") or len(parts) == 3:
            continue
        for use, other in inner_imports(path):
            system = other.split(".")[2] if other.startswith("stages.models.") else ""
            if system in siblings and system != parts[2]:
                offenders[f"{use.file} -> {other}"] = f"{use.file}:{use.line} imports another system: {other}"
            network = parts[2] != "detectors" and not is_adapter(path)  # every detector's file is its adapter
            if network and other.startswith(ADAPTERS_ONLY):
                offenders[f"{use.file} -> {other}"] = f"{use.file}:{use.line} is no adapter and imports {other}"
    check("systems", offenders)


def is_adapter(path: Path) -> bool:
    return path.stem in ADAPTERS or path.stem.startswith("from_")


def test_files_under_stages_are_the_commands() -> None:
    """Every file directly under stages/ is a command of the command line, with a file there."""
    assert {p.stem for p in ROOT.glob("stages/*.py")} >= set(BESIDE)
    commands = {p.stem for p in ROOT.glob("hmr_cli/*.py") if not p.stem.startswith("_")}
    named = {"evaluate": "eval"}
    strays = {verb: f"stages/{verb}.py has no hmr_cli/{verb}.py" for v in VERBS if (verb := v.split(".")[1])}
    check("verbs", {v: text for v, text in strays.items() if named.get(v, v) not in commands})


def test_files_are_small() -> None:
    long = {name_of(p): n for p in FILES if (n := len(p.read_text().splitlines())) > LONGEST}
    check("size", {file: f"{file} has {n} lines: two thoughts in one file" for file, n in long.items()})


def test_class_names_are_used_once() -> None:
    where = defaultdict(list)
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                where[node.name].append(f"{name_of(path)}:{node.lineno}")
    check("classes", {name: f"{name}: {', '.join(places)}" for name, places in where.items() if len(places) > 1})


def test_test_modules_share_through_helpers() -> None:
    """tests/helpers/ holds what several tests share: no test module is imported, nothing else lies beside tests."""
    offenders = {}
    for path in sorted(ROOT.glob("tests/**/*.py")):
        parts = path.relative_to(ROOT).parts
        if "fixtures" in parts or "archives" in parts:
            continue
        if parts[1] != "helpers" and not path.stem.startswith("test_") and path.stem not in ("__init__", "conftest"):
            offenders[name_of(path)] = f"{name_of(path)} is neither a test nor in tests/helpers"
        for use in imports(path):
            if use.name.startswith("tests.") and any(part.startswith("test_") for part in use.name.split(".")):
                offenders[f"{use.file} -> {use.name}"] = f"{use.file}:{use.line} imports the test module {use.name}"
    check("helpers", offenders)


def test_every_room_has_a_line() -> None:
    """ORDER names what is there: every module has a room, every room has modules, no room twice."""
    rooms = {room_of(module)[1] for module in MODULES}
    named = Counter(room for line in ORDER for room in line)
    assert set(named) == rooms, f"no such room: {set(named) - rooms}"
    assert max(named.values()) == 1


@pytest.mark.parametrize("module", ["stages.params", "stages.params.rules", "stages.errors", "stages.models.tables"])
def test_what_help_needs_stands_alone(module: str) -> None:
    """Flags and help read these: they import nothing but the standard library and each other."""
    light = {"stages.params", "stages.params.rules", "stages.errors", "stages.models.tables"}
    for use in imports(MODULES[module]):
        assert target(use.name) in light or use.name.split(".")[0] in sys.stdlib_module_names, (
            f"{use.file}:{use.line}: {use.name}"
        )
