"""Data sets in COCO's form on disk: finding the json file and the images, and reading the json."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cgnl.data.decoding import MAX_PIXELS, AnyPath, BadFileError, DataError, open_regular, resolve_inside
from cgnl.data.detection.annotations import ImageEntry, sort_annotations
from cgnl.data.detection.samples import DetectionList, Packed, Rows, whole
from cgnl.data.lists import (
    COCO_EXPORT,
    SPLIT_FOLDERS,
    Inside,
    NoSplitError,
    Sample,
    Split,
    check_folder,
    coco_files,
    exists,
    seen_in,
)

_PREFIX = "instances_"
_LOOKED_AT = 100
_FIELDS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
# Of COCO's 448 MB on two cores of 2023; a file above the first number takes seconds.
_LARGE, _BYTES_PER_SECOND, _MEMORY = 50e6, 30e6, 2.3


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
            belongs to the json in ``root``, or else the json's own, or the root if the images are there instead.

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
    elsewhere = base if images is None and annotations is not None and folder == source.parent else None
    return _read(source, folder, elsewhere)


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


def _read(source: Path, folder: Path, elsewhere: Path | None = None) -> DetectionList:
    rows = Rows()
    lists = _load(source, rows)
    if elsewhere is not None and not _holds_any(folder, lists["images"]) and _holds_any(elsewhere, lists["images"]):
        folder = elsewhere
    category_ids, names, notes = _read_categories(source, lists["categories"])
    images: dict[int, ImageEntry] = {}
    samples: dict[int, Sample] = {}
    missing: list[Path] = []
    reasons: dict[Path, str] = {}
    hint: str | None = None
    inside = Inside(folder, source)
    for number, row in enumerate(lists["images"], 1):
        image_id, name, width, height = _read_image(source, number, row)
        if image_id in images:
            raise DataError(f"{source}: two images have the id {image_id}.")
        path = _path_of(name, inside, f"{source}, image {image_id}")
        if width * height > MAX_PIXELS:
            reasons[path] = f"is {width} x {height} pixels, more than {MAX_PIXELS // 10**6} megapixels, says {source}"
        usable = path not in reasons and exists(path)
        images[image_id] = ImageEntry(name, width, height, usable)
        if usable:
            samples[image_id] = Sample(path, 0)
            continue
        missing.append(path)
        # once is enough: all names were written by the same program
        if hint is None and path not in reasons and (hint := _end_that_exists(folder, name)):
            reasons[path] = f"does not exist, but {folder / hint} does: the file_name should be {hint!r}"
    if not images:
        raise DataError(f"{source} names no images.")
    found = sort_annotations(lists["annotations"], rows, images, frozenset(category_ids))
    numbers = {id: len(found.used.get(id, ())) for id in samples}
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
        bad_annotations=tuple(found.bad),
        partial_annotations=tuple(found.partial),
        notes=notes,
        num_objects=tuple(number - found.num_crowds[id] for id, number in numbers.items()),
        num_crowds=tuple(found.num_crowds[id] for id in samples),
        annotations=Packed(rows, [found.used.get(id, ()) for id in samples]),
    )


def _holds_any(folder: Path, images: list[Any]) -> bool:
    """Tell whether one of the first images is a file in a folder."""
    names: Iterator[Any] = (row.get("file_name") for row in images[:_LOOKED_AT] if isinstance(row, dict))
    inside = (name for name in names if _is_text(name) and ".." not in Path(name).parts and "\0" not in name)
    return any(exists(folder / name) for name in inside if not Path(name).is_absolute())


def _path_of(name: str, inside: Inside, source: str) -> Path:
    try:
        return inside(name, source=source)
    except DataError as error:
        end = _end_that_exists(inside.root, name)
        hint = f" {inside.root / end} exists: the file_name should be {end!r}." if end else ""
        raise DataError(f"{error}{hint}") from None


def _end_that_exists(folder: Path, name: str) -> str | None:
    """Return the end of an image's name that leads to a file, None if none does.

    Names may begin with the split's folder or with the folders of another machine, and may have backslashes.
    """
    parts = re.split(r"[/\\]+", name)
    if ".." in parts or "\0" in name:
        return None
    ends = ("/".join(parts[place:]) for place in range(len(parts)))
    return next((end for end in ends if end not in ("", name) and exists(folder / end)), None)


def _load(source: Path, rows: Rows) -> dict[str, list[Any]]:
    size = source.stat().st_size if exists(source) else 0
    if size > _LARGE:
        print(
            f"reading {source} ({size / 1e6:.0f} MB): about {size / _BYTES_PER_SECOND:.0f} seconds and "
            f"{size * _MEMORY / 1e9:.1f} GB of memory",
            file=sys.stderr,
        )
    try:
        with open_regular(source) as opened:
            content = opened.read()
        # the bytes are let go before the values come
        text = content.decode(json.detect_encoding(content), "surrogatepass")
        del content
        content = _parsed(text, rows)
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


def _parsed(text: str, rows: Rows) -> Any:
    """Return the values of a json with places in ``rows`` for annotations, all of which would fill the memory."""

    def placed(row: dict[str, Any]) -> Any:
        if "image_id" in row and ("bbox" in row or "segmentation" in row) and "file_name" not in row:
            return rows.add({name: row[name] for name in _FIELDS if name in row})
        return row

    try:
        return json.loads(text, object_hook=placed)
    except json.JSONDecodeError:
        raise
    except ValueError:  # a number has more digits than Python converts; its place decides whether that does harm
        return json.loads(text, object_hook=placed, parse_int=_number)


def _number(digits: str) -> int | str:
    """Return a number, or where it is too long the beginning of its digits: a text, which is no number anywhere."""
    return int(digits) if len(digits) < 1000 else f"{digits[:20]}... ({len(digits)} digits)"


def _read_categories(source: Path, rows: list[Any]) -> tuple[tuple[int, ...], tuple[str, ...], tuple[str, ...]]:
    """Return ids, names, and a note for each name that several categories have."""
    names: dict[int, str] = {}
    for number, row in enumerate(rows, 1):
        id = whole(row.get("id")) if isinstance(row, dict) else None
        if id is None or not _is_text(row.get("name")):
            raise DataError(
                f"{source}, category number {number}: read {row!r:.80}, "
                "expected an id that is a whole number, and a name."
            )
        if id in names:
            raise DataError(f"{source}: two categories have the id {id}.")
        names[id] = row["name"]
    if not names:
        raise DataError(f"{source} has no categories.")
    alike: dict[str, list[int]] = {}
    for id in sorted(names):
        alike.setdefault(" ".join(names[id].split()).casefold(), []).append(id)
    notes = tuple(
        f"has {len(ids)} categories of one name, {', '.join(f'{names[id]!r} (id {id})' for id in ids)}: "
        "they are learned as different classes"
        for ids in alike.values()
        if len(ids) > 1
    )
    occurring = Counter(names.values())
    shown = tuple(names[id] if occurring[names[id]] == 1 else f"{names[id]} ({id})" for id in sorted(names))
    return tuple(sorted(names)), shown, notes


def _is_text(value: Any) -> bool:
    """Tell whether a value is a text that can be printed and saved: JSON can spell halves of characters."""
    return isinstance(value, str) and value.encode(errors="replace").decode() == value


def _read_image(source: Path, number: int, row: Any) -> tuple[int, str, int, int]:
    where = f"{source}, image number {number}"
    id = whole(row.get("id")) if isinstance(row, dict) else None
    if id is None:
        raise DataError(f"{where}: read {row!r:.80}, expected an id that is a whole number.")
    where = f"{source}, image {id}"
    if not _is_text(row.get("file_name")):
        raise DataError(f"{where}: read the file_name {row.get('file_name')!r:.80}, expected text.")
    sizes = []
    for name in ("width", "height"):
        size = whole(row.get(name))
        if size is None or size < 1:
            raise DataError(f"{where}: read the {name} {row.get(name)!r:.80}, expected a whole number from 1.")
        sizes.append(size)
    return id, row["file_name"], sizes[0], sizes[1]
