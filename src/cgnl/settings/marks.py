"""Marks of fields, as their metadata: which may change when a run goes on, and which change a test alone."""

from dataclasses import fields
from typing import Any

FREE = {"free": True}
"""The field may change when a run goes on: it says where things are, or does not touch the numbers."""
FOR_TESTS = {"for_tests": True}
"""The field changes how a network is tested, and not its weights."""


def fields_for_tests(config: Any) -> dict[str, Any]:
    """Return the fields that change a test alone, with their values."""
    return {field.name: getattr(config, field.name) for field in fields(config) if field.metadata.get("for_tests")}
