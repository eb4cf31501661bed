"""Types of options and arguments, with the words that stand for their values in help texts."""

from pathlib import Path
from typing import Annotated, Literal

import tyro


def _value(metavar: str) -> object:
    return tyro.conf.arg(metavar=metavar)


def _optional(metavar: str) -> object:
    # the help text says what happens without the option
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


Checkpoint = Annotated[Path, _value("CHECKPOINT")]
CheckedFormat = Literal["auto", "cub", "list", "folders", "ucf101", "kinetics", "mini_kinetics", "frame_list", "coco"]
File = Annotated[Path, _value("FILE")]
Files = Annotated[tuple[Path, ...], _optional("FILE ...")]
Folder = Annotated[Path, _value("FOLDER")]
OptionalCheckpoint = Annotated[Path | None, _optional("CHECKPOINT")]
OptionalFile = Annotated[Path | None, _optional("FILE")]
OptionalFloat = Annotated[float | None, _optional("FLOAT")]
OptionalFolder = Annotated[Path | None, _optional("FOLDER")]
OptionalInt = Annotated[int | None, _optional("INT")]
OptionalPath = Annotated[Path | None, _optional("PATH")]
OptionalText = Annotated[str | None, _optional("TEXT")]
