"""What every section of the schema is: frozen, strict about names and kinds."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, str_min_length=1
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_elsewhere(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's `true` would pass for the number 1."""
        assert info.field_name is not None
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("this setting is not a yes or no")
        return value
