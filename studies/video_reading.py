"""How many clips a second do two workers read and augment, next to decord, OpenCV and a plain PyAV loop?

A clip is every other one of 64 frames from a random start of a random file, then a random crop of area and aspect,
resized to 224, and a random flip, all on uint8. The files are written first: 10 seconds of drifting clouds of all sizes
and grain, as h264 with a key frame every 12 and every 250 frames (340 x 256) and as mpeg4 in .avi (320 x 240).

All readers work in the same data loader with the same keys and transform, and must give the same frames (up to the
rounding of colours), which is checked first. Each reads as its users would, with one decoder thread: decord with
`get_batch`; OpenCV passes over frames with `grab`, from the start of the file, or from where it has just set the frame
position, where that gives the right frames; PyAV seeks to the key frame before the first frame, decodes on, and
converts the wanted frames. cgnl reads as in training, through a process of its own for each worker.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import decord
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cgnl.data.transforms import clip_train_transform
from cgnl.data.videos import GuardedReader
from cgnl.measure.timing import ratios, side_by_side, spread
from script import begin, study, write

WORKERS = 2
LENGTH, STEP = 32, 2
SECONDS = 10
FORMATS = {
    "h264 340x256, GOP 12": ("mp4", "libx264", 340, 256, 30, {"g": "12", "crf": "23"}),
    "h264 340x256, GOP 250": ("mp4", "libx264", 340, 256, 30, {"g": "250", "crf": "23"}),
    "mpeg4 320x240 .avi": ("avi", "mpeg4", 320, 240, 25, {"g": "12", "qscale": "4", "flags": "qscale"}),
}
Reader = Callable[[Path, np.ndarray], np.ndarray]


def write_video(path: Path, codec: str, width: int, height: int, rate: int, options: dict[str, str], seed: int) -> None:
    """Write two layers of clouds that drift across each other, with grain."""
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(2):
        layer = np.full((2 * height, 2 * width, 3), 64.0)
        for cells in (3, 8, 20, 60):
            cloud = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            large = cloud.resize((2 * width, 2 * height), Image.Resampling.BICUBIC)
            layer += (np.asarray(large, dtype=float) - 128) / cells**0.5 / 2
        layers.append(layer)
    speeds = rng.uniform(-1.5, 1.5, (2, 2))
    grain = rng.normal(0, 3, (2 * height, 2 * width, 3))
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(rate * SECONDS):
            picture = 0.0
            for layer, speed in zip(layers, speeds, strict=True):
                y, x = (np.array([height, width]) // 2 + speed * 60 * np.sin(number / 40)).astype(int)
                picture = picture + layer[y : y + height, x : x + width]
            y, x = rng.integers(0, [height, width])
            picture = picture + grain[y : y + height, x : x + width]
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def read_with_decord(path: Path, wanted: np.ndarray) -> np.ndarray:
    """Read with decord, with one thread and one call for all frames."""
    return decord.VideoReader(str(path), num_threads=1).get_batch(wanted).asnumpy()


def opencv_reader(*, seek: bool) -> Reader:
    """Return a reader with OpenCV, from the start of the file or after setting the frame position."""

    def read(path: Path, wanted: np.ndarray) -> np.ndarray:
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        first = int(wanted[0]) if seek else 0
        if seek:
            capture.set(cv2.CAP_PROP_POS_FRAMES, first)
        frames = []
        for number in range(first, int(wanted[-1]) + 1):
            if not capture.grab():
                raise RuntimeError(f"OpenCV does not find frame {number} of {path}")
            if number == wanted[len(frames)]:
                frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
        capture.release()
        return np.stack(frames)

    return read


def read_with_pyav(path: Path, wanted: np.ndarray) -> np.ndarray:
    """Read in a plain loop, which trusts that frames are evenly spaced in time."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        spacing = 1 / (stream.average_rate * stream.time_base)
        origin = stream.start_time or 0
        times = [origin + round(number * spacing) for number in wanted.tolist()]
        container.seek(times[0], stream=stream)
        frames = []
        for frame in container.decode(stream):
            if frame.pts == times[len(frames)]:
                frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == len(times):
                    break
    return np.stack(frames)


class Clips(Dataset[Tensor]):
    """Clip number k is the same for all readers: file, start, crop and flip are functions of k."""

    def __init__(self, files: list[Path], frames: int, read: Reader, seed: int) -> None:
        self.files, self.frames, self.read, self.seed = files, frames, read, seed
        self.augment = clip_train_transform(224)

    def __getitem__(self, key: int) -> Tensor:
        """Read and augment one clip, uint8 [3, T, 224, 224]."""
        rng = np.random.default_rng((self.seed, key))
        start = rng.integers(0, self.frames - LENGTH * STEP + 1)
        wanted = start + np.arange(0, LENGTH * STEP, STEP)
        torch.manual_seed(int(rng.integers(2**31)))
        return self.augment(self.read(self.files[rng.integers(len(self.files))], wanted))


def main() -> None:
    """Time reading clips and write the record."""
    parser = study(__file__, __doc__, repeats=11, threads=1)
    parser.add_argument("--clips", type=int, default=24, help="clips of each reader in each turn")
    parser.add_argument("--files", type=int, default=4, help="files of each format")
    arguments = begin(parser)
    cv2.setNumThreads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (suffix, codec, width, height, rate, options) in FORMATS.items():
            files = [Path(folder, f"{len(rows)}-{index}.{suffix}") for index in range(arguments.files)]
            for index, file in enumerate(files):
                write_video(file, codec, width, height, rate, options, arguments.seed + index)
            readers: dict[str, Reader] = {
                "cgnl": cgnl_reader(),
                "decord": read_with_decord,
                "OpenCV": opencv_reader(seek=False),
                "PyAV loop": read_with_pyav,
            }
            if is_exact(opencv_reader(seek=True), files[0], rate * SECONDS):
                readers["OpenCV, seeking"] = opencv_reader(seek=True)
            exact = {reader: is_exact(read, files[0], rate * SECONDS) for reader, read in readers.items()}
            assert exact["cgnl"]
            seconds = side_by_side(
                {
                    reader: epochs(files, rate * SECONDS, read, arguments.clips, arguments.seed)
                    for reader, read in readers.items()
                },
                repeats=arguments.repeats,
                warmup=1,
            )
            per_second = {
                reader: spread([arguments.clips / value for value in values]) for reader, values in seconds.items()
            }
            faster = {reader: ratios(seconds[reader], to=seconds["cgnl"]) for reader in readers if reader != "cgnl"}
            size = sum(file.stat().st_size for file in files) // len(files)
            rows.append(
                {
                    "format": name,
                    "bytes_of_a_file": size,
                    "clips_per_second": per_second,
                    "cgnl_times_as_fast_as": faster,
                    "gives_the_right_frames": exact,
                }
            )
            print(f"{name} ({size // 1000} kB): cgnl {per_second['cgnl']['median']:.1f} clips/s;", end=" ")
            print(", ".join(f"{ratio['median']:.2f} times as fast as {other}" for other, ratio in faster.items()))
            if not all(exact.values()):
                print("  not exact:", ", ".join(reader for reader, right in exact.items() if not right))
    write(
        arguments,
        rows,
        workers=WORKERS,
        decoder_threads=1,
        clips=arguments.clips,
        repeats=arguments.repeats,
        frames=f"{LENGTH} of {LENGTH * STEP}",
        video_seconds=SECONDS,
        versions={"av": av.__version__, "decord": decord.__version__, "opencv": cv2.__version__},
    )


def cgnl_reader() -> Reader:
    """Return our reader, as in training: each worker has a process that may crash or hang."""
    guarded = GuardedReader()
    return lambda path, wanted: guarded.read(path, wanted.tolist())[0]


def is_exact(read: Reader, file: Path, frames: int) -> bool:
    """Return whether a reader gives the frames of a decode from the start, up to the rounding of colours."""
    with av.open(str(file)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for start in (0, 7, 100, frames - LENGTH * STEP):
        wanted = start + np.arange(0, LENGTH * STEP, STEP)
        try:
            difference = np.abs(read(file, wanted).astype(int) - np.stack([decoded[i] for i in wanted]))
        except (RuntimeError, ValueError, IndexError):
            return False
        # Neighbouring frames differ by the grain and the drift: far more on average.
        if difference.mean() > 1.5:
            return False
    return True


class Turns(Sampler[int]):
    """The same number of keys each time it is gone through, and others each time."""

    def __init__(self, number: int) -> None:
        self.number, self._next = number, 0

    def __iter__(self) -> Iterator[int]:
        """Yield the keys of the next turn."""
        first, self._next = self._next, self._next + self.number
        return iter(range(first, self._next))

    def __len__(self) -> int:
        """Return the number of keys in a turn."""
        return self.number


def epochs(files: list[Path], frames: int, read: Reader, clips: int, seed: int) -> Callable[[], None]:
    """Return a function that reads some clips through a data loader whose workers stay."""
    loader = DataLoader(
        Clips(files, frames, read, seed),
        batch_size=None,
        sampler=Turns(clips),
        num_workers=WORKERS,
        persistent_workers=True,
        multiprocessing_context="fork",
    )

    def run() -> None:
        for clip in loader:
            assert clip.shape == (3, LENGTH, 224, 224)

    return run


if __name__ == "__main__":
    main()
