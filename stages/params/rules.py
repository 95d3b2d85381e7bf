"""A setting and its rules: default, help, unit, choices, range. `check` is the one place that refuses values."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar

from stages.errors import UsageError

P = TypeVar("P")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is known of a setting beside its type and default: see `param`."""

    help: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    stored_none: Any = None

    @property
    def range(self) -> str:
        """The allowed values in words, '' where any will do."""
        if self.low is not None and self.high is not None and self.high < math.inf:
            return f"from {self.low} to {self.high}"
        limits = {"{} or more": self.low, "above {}": self.above, "below {}": self.below}
        return ", ".join(text.format(limit) for text, limit in limits.items() if limit is not None)

    @property
    def values(self) -> str:
        """Choices, or range and unit, in words."""
        return " | ".join(self.choices) or ", ".join(text for text in (self.unit, self.range) if text)

    def allows(self, value: Any) -> bool:
        """Is a value one of the choices and in the range? NaN never is; infinity only where `high` is infinite."""
        if self.choices:
            return value in self.choices
        if isinstance(value, float) and not (math.isfinite(value) or value == self.high):
            return False
        return not (
            (self.low is not None and value < self.low)
            or (self.high is not None and value > self.high)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
        )


def param(default: Any, help: str, **rules: Any) -> Any:
    """A field of a Params class: its default, one line of help, and any of

    unit · choices (texts) · low, high (inclusive) · above, below (exclusive) · stored_none: how None is stored, which
    is what the setting's default was in artefacts of hmr 0.1; typed or read back, that value means None.
    """
    return dataclasses.field(default=default, metadata={"setting": Setting(help, **rules)})


def optional_text(help: str) -> Any:
    """A text that need not be given."""
    return param(None, help, stored_none="")


def setting(field: dataclasses.Field[Any]) -> Setting:
    """What `param` was told about a field."""
    return field.metadata["setting"]


def check(params: P) -> P:
    """The settings, with None for values that mean "not given". Raises UsageError naming the flag of a wrong value."""
    params = with_none(params)
    for field in dataclasses.fields(params):  # type: ignore[arg-type]
        value, rules = getattr(params, field.name), setting(field)
        for each in value if isinstance(value, tuple) else (value,):
            if each is None or rules.allows(each):
                continue
            flag = f"--{field.name.replace('_', '-')} {each}"
            if rules.choices:
                raise UsageError(f"{flag}: no such choice", f"one of {', '.join(rules.choices)}")
            unit = f" ({rules.unit})" if rules.unit else ""
            raise UsageError(f"{flag}: must be {rules.range or 'a finite number'}{unit}")
    return params


def with_none(params: P) -> P:
    """The settings, with None for values that mean "not given" (see `param`)."""
    fields: Any = dataclasses.fields(params)  # type: ignore[arg-type]
    stored = {f.name: setting(f).stored_none for f in fields}
    unset = {n: None for n, none in stored.items() if none is not None and getattr(params, n) == none}
    return dataclasses.replace(params, **unset) if unset else params  # type: ignore[type-var]
