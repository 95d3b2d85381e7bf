"""The networks, one folder per system. `find_model` gives the class for a name or a checkpoint, `load_model` the
network.

base.py is the contract of a network, tables.py says which systems there are.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from stages.errors import AssetError, UsageError
from stages.models.base import PersonModel, Refiner

if TYPE_CHECKING:
    from stages.files.checkpoints import Checkpoint
    from stages.smpl.body import Body


def find(table: Mapping[str, str], model: str) -> Callable[..., Any]:
    """The class behind a name of `table` or behind `package.module:Class`. Raises UsageError, naming the choices."""
    target = table.get(model, model)
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"no model {model!r}: {error}",
            f"choose one of {', '.join(table)}, or name your own as package.module:Class",
        ) from error


def find_model(table: Mapping[str, str], model: str | None, checkpoint: Checkpoint | None, contract: Any) -> Any:
    """The class named by `model` or, where that is None, the class of `table` that recognises the checkpoint.

    contract: the class PersonModel or Refiner. Raises UsageError for a class that is no subclass of it or lacks
    members, AssetError for a checkpoint that nothing recognises.
    """
    if not model:
        assert checkpoint is not None
        return find_loader(table, checkpoint)
    loader: Any = find(table, model)
    suits = inspect.isclass(loader) and issubclass(loader, contract)
    if not suits:
        raise UsageError(
            f"{model} is no subclass of stages.models.base.{contract.__name__}",
            "make it one: that class documents every member, docs/examples/ shows whole networks",
        )
    if missing := sorted(loader.__abstractmethods__):
        raise UsageError(f"{model} does not define {', '.join(missing)}", "stages/models/base.py documents them")
    return loader


def load_model(loader: type[PersonModel], checkpoint: Checkpoint | None, device: str, body: Body | None) -> PersonModel:
    """The network of a checkpoint. Raises AssetError for a file that does not fit, UsageError for a broken contract."""
    from stages.files.checkpoints import usable  # imports torch, which the tables do without

    with usable(checkpoint.path if checkpoint else loader.__name__):
        model = loader.load(checkpoint, device=device, body=body)
    if not (isinstance(model, PersonModel) and model.name and model.columns):
        raise UsageError(
            f"{loader.__module__}:{loader.__name__}.load gives {type(model).__name__} without a name or columns",
            "it must return an object of its class; stages/models/base.py documents the members",
        )
    return model


def load_refiner(
    loader: type[Refiner], checkpoint: Checkpoint | None, device: str, body: Body, stats: str | None
) -> Refiner:
    """The refiner of a checkpoint, for bodies of `body`. Raises AssetError for a file that does not fit, UsageError for
    a broken contract."""
    from stages.files.checkpoints import usable  # imports torch, which the tables do without

    with usable(checkpoint.path if checkpoint else loader.__name__):
        refiner = loader.load(checkpoint, device=device, body=body.to(device), stats=stats)
    if not (isinstance(refiner, Refiner) and refiner.name):
        raise UsageError(
            f"{loader.__module__}:{loader.__name__}.load gives {type(refiner).__name__} without a name",
            "it must return an object of its class; stages/models/base.py documents the members",
        )
    return refiner


def find_loader(table: Mapping[str, str], checkpoint: Checkpoint) -> Any:
    """The class of `table` that recognises the file. Raises AssetError naming the choices."""
    recognising = loaders(table, checkpoint)
    if recognising:
        return next(iter(recognising.values()))
    tops = sorted({".".join(name.split(".")[:2]) for name in checkpoint.names})
    raise AssetError(
        f"{checkpoint.where} is a checkpoint of none of {', '.join(table)}: "
        f"its {len(checkpoint.names)} tensors are called {', '.join(tops[:4])}{' ...' if len(tops) > 4 else ''}",
        "name its class by --model, or see what it holds with: hmr checkpoint FILE",
    )


def loaders(table: Mapping[str, str], checkpoint: Checkpoint) -> dict[str, Any]:
    """The classes of `table` that recognise the file, by name. A system that cannot be imported here is not asked."""
    recognising: dict[str, Any] = {}
    for name in table:
        with contextlib.suppress(UsageError):
            loader: Any = find(table, name)
            if loader.recognises(checkpoint.names):
                recognising[name] = loader
    return recognising
