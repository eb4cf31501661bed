"""``cgnl predict``."""

import json as json_module
import sys
from pathlib import Path
from typing import Any

import tyro


def predict(
    checkpoint: tyro.conf.Positional[Path],
    files: tyro.conf.Positional[tuple[Path, ...]],
    json: bool = False,
    top: int | None = None,
    timeline: Path | None = None,
    out: Path | None = None,
    score: float | None = None,
) -> None:
    """Print the most probable classes of images or videos, or the objects in images; draw the objects.

    Args:
        checkpoint: A checkpoint, or a run folder (its best.ckpt, or else last.ckpt).
        files: Image files; for a video network video files, or folders of frames.
        json: Print one JSON object for each file instead of a table.
        top: Number of classes; by default 5.
        timeline: CSV file for the most probable classes of each second of the videos.
        out: Picture with the detected objects drawn in; of several images a folder of pictures.
        score: Minimum score of a detected object; by default 0.5.
    """
    from cgnl.training.checkpoint import load_trained

    if not files:
        raise ValueError("files must name at least one image or video")
    if top is not None and top < 1:
        raise ValueError(f"top ({top}) must be at least 1")
    if score is not None and not 0 <= score <= 1:
        raise ValueError(f"score ({score}) must be between 0 and 1")
    trained = load_trained(checkpoint)
    task = trained.recipe.task
    if timeline is not None and task != "video":
        raise ValueError(f"timeline ({timeline}) needs a video network, and {checkpoint} holds one of another kind")
    if out is not None and task != "detection":
        raise ValueError(f"out ({out}) needs a detector, and {checkpoint} holds a network that classifies")
    if score is not None and task != "detection":
        raise ValueError(f"score ({score}) needs a detector, and {checkpoint} holds a network that classifies")
    if top is not None and task == "detection":
        raise ValueError(f"top ({top}) needs a network that classifies, and {checkpoint} holds a detector")
    if task == "detection":
        pictures = _pictures(files, out)
        least = 0.5 if score is None else score
        done = [_objects(trained, path, picture, least, json) for path, picture in zip(files, pictures, strict=True)]
    else:
        done = _classify(trained, files, top or 5, timeline, json)
    if not all(done):
        sys.exit(2)


def _fail(path: Path, error: ValueError, json: bool) -> None:
    print(f"cgnl: {error}", file=sys.stderr)
    if json:
        print(json_module.dumps({"path": str(path), "error": str(error)}))


def _classify(trained: Any, files: tuple[Path, ...], top: int, timeline: Path | None, json: bool) -> list[bool]:
    """Print the classes of each file; return for each whether it could be read."""
    from cgnl.data.decoding import DataError
    from cgnl.training.evaluation import predict, predict_timeline, write_timeline

    done: list[bool] = []
    seconds = []
    for path in files:
        best = None
        try:
            best = predict(trained, path, top=top)
            if json:
                rows = [{"class": name, "probability": round(p, 6)} for name, p in best]
                print(json_module.dumps({"path": str(path), "top": rows}))
            else:
                print(path)
                for name, p in best:
                    print(f"  {100 * p:6.2f} %  {name}")
            if timeline is not None:
                seconds += [(path, *row) for row in predict_timeline(trained, path, top=top)]
            done.append(True)
        except DataError as error:
            _fail(path, error, json and best is None)
            done.append(False)
    if timeline is not None:
        write_timeline(timeline, seconds)
        print(f"written: {timeline}", file=sys.stderr)
    return done


def _pictures(files: tuple[Path, ...], out: Path | None) -> list[Path | None]:
    """The picture to draw of each file: ``out``, or of several files one each in the folder ``out``."""
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
        raise ValueError(f"files: two of the images have one name, so that their pictures in {out} would be one")
    images = {path.resolve() for path in files}
    for picture in pictures:
        if picture.resolve() in images:
            raise ValueError(f"out ({out}) would write the picture over the image {picture}: give another place")
    return [*pictures]


def _objects(trained: Any, path: Path, picture: Path | None, score: float, json: bool) -> bool:
    """Print the objects in an image and draw them; return whether it could be read."""
    from cgnl.data.decoding import DataError, open_image
    from cgnl.explain.detections import draw_objects
    from cgnl.files import whole_file
    from cgnl.training.average_precision import run_lengths
    from cgnl.training.detection_evaluation import detect

    try:
        image = open_image(path)
    except DataError as error:
        _fail(path, error, json)
        return False
    found = detect(trained, image, min_score=score)
    names = [trained.classes[label - 1] for label in found["labels"].tolist()]
    boxes, scores = found["boxes"].tolist(), found["scores"].tolist()
    if json:
        objects = [
            {
                "class": name,
                "score": round(value, 6),
                "box": [round(side, 3) for side in box],
                "mask": mask,
            }
            for name, value, box, mask in zip(names, scores, boxes, run_lengths(found["masks"]), strict=True)
        ]
        print(json_module.dumps({"path": str(path), "objects": objects}))
    else:
        print(path)
        for name, value, box in zip(names, scores, boxes, strict=True):
            print(f"  {100 * value:6.2f} %  {name}  " + " ".join(f"{side:.1f}" for side in box))
        if not names:
            print(f"  no object with a score of {score:g} or more")
    if picture is not None:
        drawn = draw_objects(
            image, found["boxes"], found["labels"], trained.classes, scores=found["scores"], masks=found["masks"]
        )
        kind = {".jpg": "JPEG"}.get(picture.suffix.lower(), picture.suffix[1:])
        with whole_file(picture, "wb") as file:
            drawn.save(file, kind)
        print(f"written: {picture}", file=sys.stderr)
    return True
