"""Data sets in COCO's form on disk: finding the json file and the images, and reading the json."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from cgnl.data.decoding import MAX_PIXELS, AnyPath, BadFileError, DataError, open_regular, resolve_inside
from cgnl.data.detection.annotations import ImageEntry, is_id, sort_annotations
from cgnl.data.detection.samples import DetectionList, Packed
from cgnl.data.lists import (
    COCO_EXPORT,
    SPLIT_FOLDERS,
    NoSplitError,
    Sample,
    Split,
    check_folder,
    coco_files,
    exists,
    seen_in,
)

_PREFIX = "instances_"


def read_coco(
    root: AnyPath | None, split: Split = "train", *, annotations: AnyPath | None = None, images: AnyPath | None = None
) -> DetectionList:
    """Read one split of a data set in COCO's form: its images, and the objects in them.

    Args:
        root: A folder with ``annotations/instances_train2017.json`` and ``train2017/`` (or without the year, or
            with ``images/train2017/``), and the same of ``val`` and ``test``; or one with
            ``train/_annotations.coco.json`` among the images, and the same in ``valid/`` and ``test/``, or other names
            of :data:`cgnl.data.lists.SPLIT_FOLDERS`.
        split: ``train``, ``val`` or ``test``; where there is only one of the last two, either means it.
        annotations: The json file, where it is another one; ``root`` may then be None.
        images: The folder that the images' names start from, where it is another one; by default the folder that
            belongs to the json in ``root``, or else the json's own.

    Returns:
        The images whose files exist in the order of the json, the names of the missing ones, the annotations that
        can be used, and the faults of the others.

    Raises:
        NoSplitError: The folder has no json for the split.
        DataError: There is no such folder, the json or something in it is not in COCO's form, or the name of an
            image leads out of its folder.
        ValueError: Neither a root nor annotations.

    Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; https://cocodataset.org/#format-data
    """
    base = None if root is None else Path(root).expanduser()
    if base is not None:
        check_folder(base)
    if annotations is not None:
        source = Path(annotations).expanduser()
    elif base is not None:
        source = _find_annotations(base, split)
    else:
        raise ValueError(f"annotations ({annotations}) must be given where root is None")
    folder = _find_images(base, source) if images is None else Path(images).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder}, where the images of {source} should be, is not a folder.")
    return _read(source, folder)


def coco_parts(root: Path) -> tuple[Split, ...]:
    """Return which parts a folder in COCO's layout has."""
    check_folder(root)
    return tuple(split for split in SPLIT_FOLDERS if coco_files(root, split))


def _find_annotations(root: Path, split: Split) -> Path:
    other: Split = "val" if split == "test" else "test"
    files = coco_files(root, split) or ([] if split == "train" else coco_files(root, other))
    if len(files) > 1:  # those of several years, of which the images of one may be there
        files = [file for file in files if _image_folder(root, file) is not None] or files
    if not files:
        name, folders = ("train", "train/") if split == "train" else ("val", "valid/, val/ or test/")
        raise NoSplitError(
            f"{root} has no annotations/{_PREFIX}{name}*.json or {folders}{COCO_EXPORT} (COCO's layout) "
            f"for the {split} split. {seen_in(root)}"
        )
    if len(files) > 1:
        raise DataError(
            f"{root} has several json files for the {split} split: {', '.join(file.name for file in files)}. "
            "Name one of them as annotations."
        )
    return resolve_inside(root, files[0].relative_to(root).as_posix(), source=root)


def _image_folder(root: Path, source: Path) -> Path | None:
    """Return the folder of ``root`` that belongs to a json of COCO's name."""
    name = source.stem.removeprefix(_PREFIX)
    names = [name, name.rstrip("0123456789") or name]
    folders = (base / name for base in (root, root / "images") for name in names)
    return next((folder for folder in folders if folder.is_dir()), None)


def _find_images(root: Path | None, source: Path) -> Path:
    if root is None or source.name == COCO_EXPORT:
        return source.parent
    folder = _image_folder(root, source)
    if folder is not None:
        return resolve_inside(root, folder.relative_to(root).as_posix(), source=root)
    if source.parent == root / "annotations":
        name = source.stem.removeprefix(_PREFIX)
        raise DataError(f"{root} has no folder {name} or images/{name} with the images of {source}.")
    return source.parent


def _read(source: Path, folder: Path) -> DetectionList:
    lists = _load(source)
    category_ids, names = _read_categories(source, lists["categories"])
    images: dict[int, ImageEntry] = {}
    samples: dict[int, Sample] = {}
    missing, reasons = [], {}
    for number, row in enumerate(lists["images"], 1):
        image_id, name, width, height = _read_image(source, number, row)
        if image_id in images:
            raise DataError(f"{source}: two images have the id {image_id}.")
        path = resolve_inside(folder, name, source=f"{source}, image {image_id}")
        if width * height > MAX_PIXELS:
            reasons[path] = f"is {width} x {height} pixels, more than {MAX_PIXELS // 10**6} megapixels, says {source}"
        usable = path not in reasons and exists(path)
        images[image_id] = ImageEntry(name, width, height, usable)
        if usable:
            samples[image_id] = Sample(path, 0)
        else:
            missing.append(path)
    if not images:
        raise DataError(f"{source} names no images.")
    used, bad = sort_annotations(lists["annotations"], images, frozenset(category_ids))
    crowds = [sum(annotation["iscrowd"] for annotation in used.get(id, ())) for id in samples]
    return DetectionList(
        folder,
        tuple(samples.values()),
        names,
        "coco",
        tuple(missing),
        reasons,
        category_ids=category_ids,
        image_ids=tuple(samples),
        sizes=tuple((images[id].width, images[id].height) for id in samples),
        source=source,
        bad_annotations=tuple(bad),
        num_objects=tuple(len(used.get(id, ())) - number for id, number in zip(samples, crowds, strict=True)),
        num_crowds=tuple(crowds),
        annotations=Packed(used.get(id, []) for id in samples),
    )


def _load(source: Path) -> dict[str, list[Any]]:
    try:
        with open_regular(source) as opened:
            content = json.loads(opened.read())
    except BadFileError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source} is not JSON: {error}.") from None
    names = ("images", "annotations", "categories")
    if not isinstance(content, dict):
        raise DataError(f"{source} holds a JSON {type(content).__name__}, expected an object with {', '.join(names)}.")
    for name in names:
        if name not in content:
            raise DataError(f'{source} has no "{name}", but a data set in COCO\'s form has {", ".join(names)}.')
        if not isinstance(content[name], list):
            raise DataError(f'{source}: "{name}" is {content[name]!r:.80}, expected a list.')
    return content


def _read_categories(source: Path, rows: list[Any]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    names: dict[int, str] = {}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not is_id(row.get("id")) or not _is_text(row.get("name")):
            raise DataError(
                f"{source}, category number {number}: read {row!r:.80}, "
                "expected an id that is a whole number, and a name."
            )
        if row["id"] in names:
            raise DataError(f"{source}: two categories have the id {row['id']}.")
        names[row["id"]] = row["name"]
    if not names:
        raise DataError(f"{source} has no categories.")
    occurring = Counter(names.values())
    return tuple(sorted(names)), tuple(
        names[id] if occurring[names[id]] == 1 else f"{names[id]} ({id})" for id in sorted(names)
    )


def _is_text(value: Any) -> bool:
    """Tell whether a value is a text that can be printed and saved: JSON can spell halves of characters."""
    return isinstance(value, str) and value.encode(errors="replace").decode() == value


def _read_image(source: Path, number: int, row: Any) -> tuple[int, str, int, int]:
    where = f"{source}, image number {number}"
    if not isinstance(row, dict) or not is_id(row.get("id")):
        raise DataError(f"{where}: read {row!r:.80}, expected an id that is a whole number.")
    where = f"{source}, image {row['id']}"
    if not _is_text(row.get("file_name")):
        raise DataError(f"{where}: read the file_name {row.get('file_name')!r:.80}, expected text.")
    for name in ("width", "height"):
        if not is_id(row.get(name)) or row[name] < 1:
            raise DataError(f"{where}: read the {name} {row.get(name)!r:.80}, expected a whole number from 1.")
    return row["id"], row["file_name"], row["width"], row["height"]
