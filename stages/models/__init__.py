"""The networks, one folder per system. `find` gives the class behind a name, `find_loader` the one that a file is for.

base.py is the contract of a network, tables.py says which systems there are.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from stages.errors import AssetError, UsageError

if TYPE_CHECKING:
    from stages.files.checkpoints import Checkpoint


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


def find_loader(table: Mapping[str, str], checkpoint: Checkpoint) -> Any:
    """The class of `table` (see stages.models) that recognises the file. Raises AssetError naming the choices."""
    found = loaders(table, checkpoint)
    if found:
        return next(iter(found.values()))
    tops = sorted({".".join(name.split(".")[:2]) for name in checkpoint.names})
    raise AssetError(
        f"{checkpoint.where} is a checkpoint of none of {', '.join(table)}: "
        f"its {len(checkpoint.names)} tensors are called {', '.join(tops[:4])}{' ...' if len(tops) > 4 else ''}",
        "name its class by --model, or see what it holds with: hmr checkpoint FILE",
    )


def loaders(table: Mapping[str, str], checkpoint: Checkpoint) -> dict[str, Any]:
    """The classes of `table` that recognise the file, by name. A system that cannot be imported here is not asked."""
    found: dict[str, Any] = {}
    for name in table:
        with contextlib.suppress(UsageError):
            loader: Any = find(table, name)
            if loader.recognises(checkpoint.names):
                found[name] = loader
    return found
