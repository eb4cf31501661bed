"""``cgnl data check`` for videos: decode every frame of a data set, count its contents and list its faults."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Unpack

from rich.table import Table

from cgnl.data.decoding import AnyPath
from cgnl.data.lists import SampleList, Split
from cgnl.data.reports import Checked, Report, apart, between, examined, read_parts, report_of, write_anew
from cgnl.data.videos.decoding import VideoInfo, decode_all
from cgnl.data.videos.layouts import read_videos, video_parts
from cgnl.settings.words import counted

_ROWS = 10
_BAR = 30


@dataclass(frozen=True, kw_only=True)
class VideoReport(Report):
    """Contents of a data set of videos and its faults; as a string, tables to read.

    ``infos`` are of each video that can be read; ``frames`` in them are those that were decoded. A video is damaged if
    that is another number of frames than its container promises.
    """

    noun: ClassVar[str] = "videos"
    infos: tuple[VideoInfo, ...]

    def describe(self) -> list[Table]:
        """Return tables of sizes, rates and lengths."""
        whole = [info for info in self.infos if info.frames]  # others are damaged from end to end
        timed = [info for info in whole if info.fps]
        contents: list[Table] = []
        if self.infos:
            contents = [
                _most_common("size (pixels)", (f"{info.width} x {info.height}" for info in self.infos)),
                _most_common(
                    "frames per second", (f"{info.fps:.4g}" if info.fps else "unknown" for info in self.infos)
                ),
            ]
        if whole:
            contents.append(_doubling("length (frames)", [info.frames for info in whole], lambda edge: f"{edge - 1:g}"))
        if timed:
            contents.append(_doubling("length (seconds)", [info.frames / info.fps for info in timed], "{:g}".format))
        return contents


def check_videos(
    root: AnyPath,
    *,
    format: str = "auto",
    annotations: AnyPath | None = None,
    fold: int = 1,
    frame_pattern: str | None = None,
    out: AnyPath | None = None,
    **given: Unpack[Checked],
) -> VideoReport:
    """Decode every frame of a video data set, in several processes, and list all that is wrong.

    A video that crashes its decoder or holds it up (by default 600 seconds) is named like any other, and the check goes
    on. ``format`` and ``frame_pattern`` are as of :func:`cgnl.data.videos.read_videos`; other arguments, and errors,
    are as of :func:`cgnl.data.checking.check_data`.
    """
    root = Path(root).expanduser()
    what, scanning = apart(given)

    def read(split: Split, list_file: Path | None, num_classes: int | None) -> SampleList:
        return read_videos(
            root,
            split,
            format=format,
            list_file=list_file,
            annotations=annotations,
            fold=fold,
            num_classes=num_classes,
            missing_limit=1.0,
            frame_pattern=frame_pattern,
        )

    splits, sources = read_parts(root, read, lambda: video_parts(root, format, annotations), what)
    scanning.setdefault("timeout", 600.0)
    infos, bad = examined(partial(decode_all, frame_pattern=frame_pattern), splits, VideoReport.noun, **scanning)
    damaged = {path: remark for videos in splits.values() for path, remark in videos.remarks.items()}
    damaged |= {
        path: f"gives {counted(info.frames, 'frame')}, but promises {info.promised}"
        for path, info in infos.items()
        if info.promised not in (None, info.frames)
    }
    more = between(root, splits, sources, bad, what)
    write_anew(out, [*more["findings"], *sorted({**bad, **damaged}.items())])
    return VideoReport(
        root=root,
        kind=next(iter(splits.values())).kind,
        splits=tuple(report_of(name, videos, bad) for name, videos in splits.items()),
        bad=tuple(sorted(bad.items())),
        damaged=tuple(sorted(damaged.items())),
        infos=tuple(infos[path] for path in sorted(infos)),
        **more,
    )


def _most_common(title: str, values: Iterable[str]) -> Table:
    counts = Counter(values).most_common()
    rows = counts[:_ROWS]
    if len(counts) > _ROWS:
        rows.append((f"{len(counts) - _ROWS} others", sum(number for _, number in counts[_ROWS:])))
    return _bars(title, rows)


def _doubling(title: str, values: Iterable[float], last: Callable[[float], str]) -> Table:
    """Count values from a power of 2 up to the next, whose name as the last of the bin is ``last``'s."""
    counts = Counter(math.floor(math.log2(value)) for value in values)
    edges = [(2.0**power, 2.0 ** (power + 1), counts[power]) for power in range(min(counts), max(counts) + 1)]
    return _bars(title, [(f"{low:g} to {last(high)}", number) for low, high, number in edges])


def _bars(title: str, rows: Iterable[tuple[str, int]]) -> Table:
    rows = list(rows)
    highest = max(number for _, number in rows)
    table = Table(title, "videos", "")
    for name, number in rows:
        table.add_row(name, str(number), "█" * math.ceil(_BAR * number / highest))
    return table
