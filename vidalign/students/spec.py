"""What a student is besides its weights, as plain data: the base of every specification; no torch."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, Self, TypeVar

from vidalign.errors import UserError, nearest


class StudentSpec:
    """Base of specifications, which are dataclasses; one travels as JSON in the header of a weights file."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, ready for JSON."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`; an unknown key raises `UserError` naming the nearest one."""
        return build_spec(cls, values, "student.init")


SpecT = TypeVar("SpecT", bound=StudentSpec)
T = TypeVar("T")


def build_spec(cls: type[T], values: dict[str, Any], where: str) -> T:
    """An instance of a dataclass; `UserError` for an unknown key, naming the nearest one."""
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            hint = nearest(key, names)
            raise UserError(f"unknown key {key!r}", where=where, fix=f"did you mean {hint!r}?" if hint else "")
    return cls(**values)
