"""The base of a crew file's models: strict types, no unknown keys, nothing changes after loading."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A model of a crew file."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, hide_input_in_errors=True, populate_by_name=True,
        protected_namespaces=(), 
    )  # fmt: skip
