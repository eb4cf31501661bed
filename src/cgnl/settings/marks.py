"""Marks in the metadata of fields: which fields may change when a run resumes, and which affect only tests."""

from dataclasses import fields
from typing import Any

FREE = {"free": True}
"""The field may change when a run resumes: it says where things are, or does not affect the numbers."""
FOR_TESTS = {"for_tests": True}
"""The field affects how a network is tested, but not its weights."""


def fields_for_tests(config: Any) -> dict[str, Any]:
    """Return the fields that affect only tests, with their values."""
    return {field.name: getattr(config, field.name) for field in fields(config) if field.metadata.get("for_tests")}
