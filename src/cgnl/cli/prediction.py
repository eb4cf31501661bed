"""``cgnl predict``."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from cgnl.cli.options import Checkpoint, Files, OptionalFile, OptionalFloat, OptionalInt, OptionalPath
from cgnl.files import json_text, whole_file, write_csv
from cgnl.settings.checks import positive, within


def predict(
    checkpoint: Positional[Checkpoint],
    files: Positional[Files],
    json: bool = False,
    top: OptionalInt = None,
    timeline: OptionalFile = None,
    folder_fps: OptionalFloat = None,
    out: OptionalPath = None,
    score: OptionalFloat = None,
) -> None:
    """Print the most probable classes of images or videos, or the objects in images.

    Args:
        checkpoint: A checkpoint, a run folder (its best.ckpt, or else its last.ckpt), or an .onnx file that
            `cgnl convert` made of one.
        files: Image files; for a video classifier, video files or folders of frames. Of another folder, every image
            or video in it.
        json: Print one JSON object per file instead of a table.
        top: Number of classes to print; by default 5.
        timeline: Write the most probable classes of each second of the videos to this CSV file.
        folder_fps: Frames per second of folders of frames, which do not say it; a timeline needs them.
        out: Draw the detected objects into this picture, or for several images into pictures in this folder.
        score: Minimum score of a detected object; by default 0.5.
    """
    from cgnl.data.decoding import DataError
    from cgnl.settings.reading import override
    from cgnl.tasks import load_exported, load_trained, predict_timeline, task_of

    if not files:
        raise ValueError("files must name at least one image or video")
    within("top", top, 1)
    within("score", score, 0, 1)
    positive("folder_fps", folder_fps)
    trained = (load_exported if checkpoint.suffix.lower() == ".onnx" else load_trained)(checkpoint)
    task = task_of(trained.recipe)
    options = {"top": top, "timeline": timeline, "folder_fps": folder_fps, "out": out, "score": score}
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if name not in task.prediction_options:
            raise ValueError(f"{name} ({value}) does nothing here: {checkpoint} holds {task.words}")
    files = tuple(file for path in files for file in task.files_in(path))
    top, score = 5 if top is None else top, 0.5 if score is None else score
    if folder_fps is not None:
        trained = replace(trained, recipe=override(trained.recipe, {"data": {"folder_fps": folder_fps}}, "predict"))
    seconds: list[Any] = []
    failed = False
    for path, picture in zip(files, _pictures(files, out), strict=True):
        prediction = None
        try:
            prediction = task.predict(trained, path, top=top, score=score)
            if json:
                print(json_text({"path": str(path), **prediction.as_dict()}))
            else:
                print(path, *prediction.lines(), sep="\n")
            if picture is not None:
                kind = {".jpg": "JPEG"}.get(picture.suffix.lower(), picture.suffix[1:])
                with whole_file(picture, "wb") as file:
                    prediction.picture().save(file, kind)
                print(f"written: {picture}", file=sys.stderr)
            if timeline is not None:
                rows = predict_timeline(trained, path, top=top, progress=sys.stderr.isatty())
                seconds += [(path, *row) for row in rows]
        except DataError as error:
            failed = True
            print(f"cgnl: {error}", file=sys.stderr)
            if json and prediction is None:
                print(json_text({"path": str(path), "error": str(error)}))
    if timeline is not None and seconds:
        _write_timeline(timeline, seconds)
        print(f"written: {timeline}", file=sys.stderr)
    if failed:
        sys.exit(2)


def _write_timeline(file: Path, rows: Sequence[tuple[Path, int, list[tuple[str, float]]]]) -> None:
    """Write video, second, and classes with probabilities, the most probable first, as CSV."""
    from cgnl.data.lists import readable

    tops = range(1, max((len(best) for *_, best in rows), default=0) + 1)
    header = ["path", "second", *(f"{what}{k}" for k in tops for what in ("class", "probability"))]
    lines = [
        [readable(str(path)), second, *(value for name, p in best for value in (name, f"{p:.6f}"))]
        for path, second, best in rows
    ]
    write_csv(file, [header, *lines])


def _pictures(files: tuple[Path, ...], out: Path | None) -> list[Path | None]:
    """Return the picture to draw of each file: ``out``, or of several files one each in the folder ``out``."""
    if out is None:
        return [None] * len(files)
    is_picture = out.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp") and not out.is_dir()
    if len(files) == 1 and not out.is_dir():
        if not is_picture:
            raise ValueError(f"out ({out}) must end in .png, .jpg or .webp")
        pictures = [out]
    else:
        if is_picture:
            raise ValueError(f"out ({out}) must be a folder for the pictures of {len(files)} images")
        pictures = [out / f"{path.stem}.png" for path in files]
    if len(set(pictures)) < len(files):
        raise ValueError(f"files: two images have the same name, so their pictures in {out} would overwrite each other")
    images = {path.resolve() for path in files}
    for picture in pictures:
        if picture.resolve() in images:
            raise ValueError(f"out ({out}) would overwrite the image {picture}")
    return [*pictures]
