"""The report page: click on a spot of an image or video and see what each block relates it to.

One self-contained HTML file: no server, no outside request, works from ``file://``. It carries theta, phi and g of
every block in 8 bits, and computes all maps itself.
"""

import base64
import html
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from cgnl.explain.effect import Effect
from cgnl.explain.maps import sums
from cgnl.explain.page.packing import pack_block
from cgnl.explain.trace import BlockTrace, check_drawable
from cgnl.files import write_text

# Text of an input's frames and one block together stays below the first; the frames alone below the second.
_MAX_BYTES = 1_900_000
_MAX_FRAME_BYTES = 600_000
_EFFECT_CLASSES = 5
_THUMBNAIL_SIZE = 96

ClassNames = Sequence[str] | Mapping[str, Sequence[str]] | None
"""Names of classes: the same for all networks, or of each network by its name."""


@dataclass(frozen=True)
class PageBlock:
    """One block of one network in the report page.

    Attributes:
        network: The network's name on the page, such as ``"CGNL"``.
        trace: What the block saw in this input.
        effect: What it changed in the prediction; None leaves that out.
    """

    network: str
    trace: BlockTrace
    effect: Effect | None = None


@dataclass(frozen=True)
class PageItem:
    """One image or video of the report page.

    Attributes:
        name: What it is called, unique in the page.
        frames: The image as the networks saw it, or the frames that went in; the blocks' positions cover them wholly.
        blocks: Blocks to show, of one network or several.
        predictions: Class names and probabilities of each network, the most probable first.
        truth: The true class, or None where it is not known.
        start: Where the reference is at first, as shares of time, height and width from 0 to below 1; None for the
            middle, or where it was in the input shown before.
        to_file: scale_x, scale_y, left and top (pixels) of the `cgnl.explain.geometry.View` of the file, for the
            reference in pixels of the file, ``(x + left) / scale_x`` and ``(y + top) / scale_y`` of x and y in the
            input; None leaves that out.
        truth_probability: Probability that each network gave to the true class, for the order of the mistakes; where
            there is none (or None), that in ``predictions``, and 0 if the true class is not among them.
    """

    name: str
    frames: Sequence[Image.Image]
    blocks: Sequence[PageBlock]
    predictions: Mapping[str, Sequence[tuple[str, float]]]
    truth: str | None = None
    start: tuple[float, float, float] | None = None
    to_file: tuple[float, float, float, float] | None = None
    truth_probability: Mapping[str, float | None] = field(default_factory=dict)


def explain_page(
    items: Iterable[PageItem], title: str, *, class_names: ClassNames = None, notes: Sequence[str] = ()
) -> str:
    """Return the report page of some inputs as HTML.

    An input and one block of it take less than 2 MB: features that are larger are averaged over space, and the page
    says so.

    Args:
        items: The inputs, in the order of the strip to choose from; each is let go before the next is asked for.
        title: The page's title.
        class_names: Names of the networks' classes, for the effects: of all networks, or a mapping from a network's
            name to those of its own; None, or a network that is not in the mapping, for ``class 0`` and so on.
        notes: Paragraphs below the title.

    Returns:
        The whole page.

    Raises:
        ValueError: There are no items, an item has no frames or no blocks, a block is not of an image or video, or
            has features that are not finite, as the outputs of its network may be, or a kernel function has an
            envelope that the page cannot compute; or there are more or fewer class names than logits.
    """
    data: list[str] = []
    index: list[dict[str, Any]] = []
    for item in items:
        _check(item)
        data.append(_data_script(f"item-{len(data)}", _item_data(item, class_names)))
        index.append(
            {
                "name": item.name,
                "thumbnail": _thumbnail(item),
                "truth": item.truth,
                "predictions": _predictions(item),
                "truthProbability": dict(item.truth_probability),
            }
        )
        del item  # its traces are large
    if not data:
        raise ValueError("items must hold at least one input")
    scripts = "\n".join([_data_script("index", index), *data])
    resources = files(__name__)
    read = {name: (resources / name).read_text(encoding="utf-8") for name in ("page.html", "page.css")}
    code = "\n".join((resources / name).read_text(encoding="utf-8") for name in ("maps.js", "drawing.js", "page.js"))
    page = read["page.html"]
    for mark, content in {
        "TITLE": html.escape(title),
        "NOTES": "\n".join(f"<p>{html.escape(note)}</p>" for note in notes),
        "STYLE": read["page.css"],
        "CODE": code,
        "DATA": scripts,
    }.items():
        page = page.replace(f"<!--{mark}-->", content)
    return page


def write_explain_page(
    path: Path, items: Iterable[PageItem], title: str, *, class_names: ClassNames = None, notes: Sequence[str] = ()
) -> None:
    """Write the report page of some inputs, whole or not at all; see `explain_page`."""
    write_text(path, explain_page(items, title, class_names=class_names, notes=notes))


def _check(item: PageItem) -> None:
    if not item.frames:
        raise ValueError(f"item ({item.name!r}) must have at least one frame")
    if not item.blocks:
        raise ValueError(f"item ({item.name!r}) must have at least one block")
    for block in item.blocks:
        if block.trace.kind != "residual":  # which has an effect
            check_drawable(block.trace, f"block ({block.trace.path!r})")
        if len(block.trace.shape) not in (2, 3):
            raise ValueError(
                f"block ({block.trace.path!r}) must be of an image or a video, "
                f"but its positions are {block.trace.shape}; `cgnl explain --figure 5` draws tokens"
            )
        features = (block.trace.theta, block.trace.phi, block.trace.g)
        if not all(tensor.isfinite().all() for tensor in features if tensor is not None):
            raise ValueError(f"block ({block.trace.path!r}) must have finite features to be shown for {item.name!r}")
        if block.trace.kind == "cgnl" and not sums(block.trace).isfinite().all():
            raise ValueError(f"block ({block.trace.path!r}) must have finite sums to be shown for {item.name!r}")
        outputs = () if block.effect is None else (block.effect.logits, block.effect.logits_without)
        if not all(tensor.isfinite().all() for tensor in outputs):
            raise ValueError(f"network ({block.network}) must have finite outputs to be shown for {item.name!r}")
    for network, ranked in item.predictions.items():
        if not all(math.isfinite(probability) for _, probability in ranked):
            raise ValueError(f"network ({network}) must have finite outputs to be shown for {item.name!r}")


def _item_data(item: PageItem, class_names: ClassNames) -> dict[str, Any]:
    frames, shrunk = _encoded_frames(item.frames)
    budget = _MAX_BYTES - sum(map(len, frames))
    note = "The pictures are JPEGs" + (", drawn smaller than the networks saw them." if shrunk else ".")
    blocks = []
    for block in item.blocks:
        packed = pack_block(block.trace, budget) | {"network": block.network}
        packed["notes"].append(note)
        if block.effect is not None:
            packed["effect"] = _effect_data(block.effect, item.truth, _class_names(block, class_names))
        blocks.append(packed)
    width, height = item.frames[0].size
    return {
        "frames": frames,
        "width": width,
        "height": height,
        "blocks": blocks,
        "start": item.start,
        "toFile": item.to_file,
    }


def _encoded_frames(frames: Sequence[Image.Image]) -> tuple[list[str], bool]:
    """Return frames as JPEG in text, drawn smaller where they would take too much; and whether they were."""
    scale = 1.0
    while True:
        encoded = [_jpeg(frame, scale) for frame in frames]
        if sum(map(len, encoded)) <= _MAX_FRAME_BYTES:
            return encoded, scale < 1
        scale *= 0.75


def _jpeg(image: Image.Image, scale: float) -> str:
    image = image.convert("RGB")
    if scale < 1:
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _thumbnail(item: PageItem) -> str:
    frame = item.frames[len(item.frames) // 2]
    return _jpeg(frame, min(0.999, _THUMBNAIL_SIZE / max(frame.size)))


def _predictions(item: PageItem) -> dict[str, list[list[Any]]]:
    return {
        network: [[name, float(probability)] for name, probability in ranked]
        for network, ranked in item.predictions.items()
    }


def _class_names(block: PageBlock, class_names: ClassNames) -> Sequence[str]:
    """Return the names of the classes whose logits the effect holds."""
    assert block.effect is not None
    count = len(block.effect.logits)
    names = class_names.get(block.network) if isinstance(class_names, Mapping) else class_names
    if names is None:
        return [f"class {k}" for k in range(count)]
    if len(names) != count:
        raise ValueError(
            f"class_names ({len(names)} of them) must be as many as the logits of the network {block.network} ({count})"
        )
    return names


def _effect_data(effect: Effect, truth: str | None, names: Sequence[str]) -> dict[str, Any]:
    """Return the likeliest classes and the true one with their probabilities, with and without parts of the block."""
    chosen = effect.probabilities.topk(min(_EFFECT_CLASSES, len(names))).indices.tolist()
    if truth in names and names.index(truth) not in chosen:
        chosen.append(names.index(truth))
    rows = [effect.probabilities, effect.probabilities_bypassed, *effect.probabilities_without]
    return {"names": [names[k] for k in chosen], "probabilities": [row[chosen].tolist() for row in rows]}


def _data_script(name: str, content: Any) -> str:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'
