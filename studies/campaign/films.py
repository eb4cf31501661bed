"""Videos of all sorts, made with ffmpeg from drawn frames, their frames compared with those that ffmpeg decodes."""

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from commands import VIDEOS, Row, cgnl, csv_rows, named, wrong

from cgnl.data.decoding import BadFileError
from cgnl.data.videos import decode_all, probe, read_frames

WIDTH, HEIGHT, FRAMES = 96, 64, 50


def draw(number: int, width: int, height: int) -> np.ndarray:
    """Return a frame [H, W, 3] with a drifting texture; neighbours differ by more than 3 of 255 on average."""
    y, x = np.mgrid[:height, :width]
    phase = 0.7 * number
    waves = [np.sin(x / 9 + phase) + np.cos(y / 5 - phase), np.sin(y / 7 + phase) + np.cos((x + y) / 11 - phase)]
    third = np.full((height, width), 100 + 60 * np.sin(phase / 2)) + x / 2
    return np.stack([128 + 50 * waves[0], 128 + 50 * waves[1], third], -1).clip(0, 255).astype(np.uint8)


def ffmpeg(*arguments: object, given: bytes | None = None) -> bytes:
    """Run ffmpeg and return its output; what it says about an error is raised."""
    command = ["ffmpeg", "-hide_banner", "-nostdin", "-y", "-v", "error", *map(str, arguments)]
    if given is not None:
        command.remove("-nostdin")
    done = subprocess.run(command, input=given, capture_output=True)
    if done.returncode and not done.stdout:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode(errors='replace')[-500:]}")
    return done.stdout


def encode(path: Path, options: str, *, frames: int = FRAMES, width: int = WIDTH, height: int = HEIGHT) -> Path:
    """Encode drawn frames at 25 frames per second; `options` are ffmpeg's, from the codec on."""
    raw = b"".join(draw(number, width, height).tobytes() for number in range(frames))
    form = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r 25 -i -".split()
    colours = "" if "-pix_fmt" in options else "-pix_fmt yuv420p"
    ffmpeg(*form, "-threads", "1", *colours.split(), *options.split(), path, given=raw)
    return path


H264 = "-c:v libx264 -preset veryfast -bf 2 -g 12 -crf 16"
# name: options of the encoder, and sizes where they are others
ENCODED: dict[str, tuple[str, dict[str, int]]] = {
    "h264.mp4": (H264, {}),
    "h264.mkv": (H264, {}),
    "h264.avi": (H264, {}),
    "h264.ts": (H264, {}),
    "h264.flv": (H264, {}),
    "h264 open.mp4": (f"{H264} -x264-params open-gop=1:ref=4:b-pyramid=2", {}),
    "h264 refresh.mp4": (f"{H264} -x264-params intra-refresh=1:bframes=0", {}),
    "h264 fragments.mp4": (f"{H264} -movflags frag_keyframe+empty_moov", {}),
    "h264 444.mp4": (f"{H264} -pix_fmt yuv444p", {}),
    "h264 10 bit.mkv": (f"{H264} -pix_fmt yuv420p10le", {}),
    "h264 interlaced.mp4": (f"{H264} -flags +ilme+ildct -x264-params tff=1", {}),
    "h264 wide pixels.mp4": (f"{H264} -aspect 16:9", {}),
    "h264 full range.mp4": (f"{H264} -color_range pc -colorspace bt709 -pix_fmt yuvj420p", {}),
    "hevc.mp4": ("-c:v libx265 -preset ultrafast -x265-params log-level=none:keyint=15:bframes=3", {}),
    "hevc 10 bit.mkv": ("-c:v libx265 -preset ultrafast -pix_fmt yuv420p10le -x265-params log-level=none", {}),
    "vp8.webm": ("-c:v libvpx -deadline realtime -cpu-used 8 -b:v 1M -auto-alt-ref 1 -lag-in-frames 10", {}),
    "vp9.webm": ("-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 1M", {}),
    "vp9 hidden.webm": ("-c:v libvpx-vp9 -deadline good -cpu-used 5 -b:v 300k -auto-alt-ref 1 -lag-in-frames 25", {}),
    "vp9 odd.webm": ("-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 1M", {"width": 97, "height": 65}),
    "av1.mp4": ("-c:v libsvtav1 -preset 12 -svtav1-params lookahead=0", {}),
    "av1.mkv": ("-c:v libaom-av1 -usage realtime -cpu-used 8 -b:v 1M", {}),
    "mpeg2.mpg": ("-c:v mpeg2video -bf 2 -g 12 -q:v 2", {}),
    "mpeg2.ts": ("-c:v mpeg2video -bf 2 -g 12 -q:v 2", {}),
    "mpeg2 interlaced.mpg": ("-c:v mpeg2video -flags +ilme+ildct -bf 2 -q:v 2", {}),
    "mpeg4.avi": ("-c:v mpeg4 -bf 2 -q:v 2", {}),
    "mpeg4.3gp": ("-c:v mpeg4 -q:v 2", {}),
    "mjpeg.avi": ("-c:v mjpeg -q:v 2 -pix_fmt yuvj420p", {}),
    "mjpeg odd.mov": ("-c:v mjpeg -q:v 2 -pix_fmt yuvj444p", {"width": 97, "height": 65}),
    "prores.mov": ("-c:v prores_ks -pix_fmt yuv422p10le", {}),
    "theora.ogv": ("-c:v libtheora -q:v 9", {}),
    "wmv2.wmv": ("-c:v wmv2 -q:v 2", {}),
    "grey.mkv": ("-c:v ffv1 -pix_fmt gray", {}),
    "alpha.mkv": ("-c:v ffv1 -pix_fmt yuva420p", {}),
    "odd.mkv": ("-c:v ffv1 -pix_fmt yuv444p", {"width": 33, "height": 47}),
    "1 frame.mp4": (H264, {"frames": 1}),
    "2 frames.mp4": (H264, {"frames": 2}),
    "1 frame.webm": ("-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 1M", {"frames": 1}),
    "1 frame.avi": ("-c:v mpeg4 -q:v 2", {"frames": 1}),
}


def _again(folder: Path, path: Path, options: str) -> None:
    """Copy a stream of h264.mp4 with options of ffmpeg."""
    ffmpeg("-i", folder / "h264.mp4", "-c", "copy", *options.split(), path)


def _turned(degrees: int) -> Callable[[Path, Path], None]:
    return lambda folder, path: _again(folder, path, f"-metadata:s:v:0 rotate={degrees}")


def _cut(source: str, part: float) -> Callable[[Path, Path], None]:
    def make(folder: Path, path: Path) -> None:
        content = (folder / source).read_bytes()
        path.write_bytes(content[: int(len(content) * part)])

    return make


def _glued(*sources: str) -> Callable[[Path, Path], None]:
    return lambda folder, path: path.write_bytes(b"".join((folder / source).read_bytes() for source in sources))


def _damaged(source: str) -> Callable[[Path, Path], None]:
    def make(folder: Path, path: Path) -> None:
        content, chosen = bytearray((folder / source).read_bytes()), random.Random(source)
        for _ in range(12):
            content[chosen.randrange(len(content) // 4, len(content) * 3 // 4)] ^= 255
        path.write_bytes(content)

    return make


def _variable(folder: Path, path: Path) -> None:
    raw = ["-i", folder / "h264.mp4", "-vf", "setpts='(N*40+random(1)*30)/1000/TB'", "-fps_mode", "passthrough"]
    ffmpeg(*raw, "-enc_time_base", "1:1000", *H264.split(), path)


def _two(folder: Path, path: Path) -> None:
    small = ["-f", "lavfi", "-i", "testsrc=size=64x64:rate=25:duration=1"]
    kept = "-map 1:v -map 0:v -c:v:0 mpeg4 -c:v:1 copy -disposition:v:0 0 -disposition:v:1 default".split()
    ffmpeg("-i", folder / "h264.mp4", *small, *kept, path)


def _with_cover(folder: Path, path: Path) -> None:
    picture = ["-f", "lavfi", "-i", "testsrc=size=300x300:rate=25", "-frames:v", "1"]
    ffmpeg(*picture, folder / "cover.png")
    kept = "-map 1 -map 0 -c copy -disposition:v:0 attached_pic".split()
    ffmpeg("-i", folder / "h264.mp4", "-i", folder / "cover.png", *kept, path)


def _with_sound(folder: Path, path: Path) -> None:
    sound = ["-f", "lavfi", "-i", "sine=duration=3"]
    ffmpeg("-i", folder / "h264.mp4", *sound, "-map", "1", "-map", "0", "-c:v", "copy", "-c:a", "aac", path)


def _sound_alone(folder: Path, path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac", path)


def _small(folder: Path, path: Path) -> None:
    encode(path, H264, width=48, height=32)


MADE: dict[str, Callable[[Path, Path], None]] = {
    **{f"turned by {degrees}.mp4": _turned(degrees) for degrees in (90, 180, 270)},
    "turned by 90.mkv": _turned(90),
    "variable.mkv": _variable,
    "variable.mp4": _variable,
    "edit list.mp4": lambda folder, path: ffmpeg("-ss", "0.5", "-i", folder / "h264.mp4", "-c", "copy", path),
    "late start.mp4": lambda folder, path: ffmpeg("-itsoffset", "1.5", "-i", folder / "h264.mp4", "-c", "copy", path),
    "two streams.mkv": _two,
    "cover.mp4": _with_cover,
    "sound first.mp4": _with_sound,
    "sound first.mkv": _with_sound,
    "sound alone.mp4": _sound_alone,
    "index first.mp4": lambda folder, path: _again(folder, path, "-movflags +faststart"),
    **{
        f"cut at {part} {source}": _cut(source, part / 100)
        for source in ("index first.mp4", "h264.mkv", "h264.ts", "mpeg4.avi", "vp9.webm", "mpeg2.mpg")
        for part in (50, 90, 99)
    },
    "cut at 90 h264.mp4": _cut("h264.mp4", 0.9),
    "glued.ts": _glued("h264.ts", "h264.ts"),
    "glued.mpg": _glued("mpeg2.mpg", "mpeg2.mpg"),
    "glued.mkv": _glued("h264.mkv", "h264.mkv"),
    "glued.mp4": _glued("h264.mp4", "h264.mp4"),
    "glued.avi": _glued("mpeg4.avi", "mpeg4.avi"),
    "small.ts": _small,
    "glued of two sizes.ts": _glued("h264.ts", "small.ts"),
    **{f"damaged {source}": _damaged(source) for source in ("h264.mp4", "h264.ts", "mpeg4.avi", "mpeg2.mpg")},
}


def make_films(folder: Path) -> list[Path]:
    """Make all videos; their names say how."""
    folder.mkdir(parents=True)
    for name, (options, sizes) in ENCODED.items():
        encode(folder / name, options, **sizes)
    for name, make in MADE.items():
        make(folder, folder / name)
    (folder / "cover.png").unlink()
    return [folder / name for name in (*ENCODED, *MADE)]


def frames_of(path: Path, width: int, height: int) -> np.ndarray:
    """Return all frames [T, H, W, 3] that ffmpeg decodes, of the stream that is marked as the default one."""
    wanted = "0:V:1" if path.name == "two streams.mkv" else "0:V:0"
    # frames that are marked as interlaced have chroma of two fields, which ffmpeg minds if it is told to
    shown = "-vf scale=interl=-1 -fps_mode passthrough -f rawvideo -pix_fmt rgb24 -".split()
    raw = ffmpeg("-threads", "1", "-i", path, "-map", wanted, *shown)
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def compared(path: Path, chosen: random.Random, told: str) -> tuple[list[str], str]:
    """Compare a video's frames with ffmpeg's, as a whole and some by number, or find the video named in a check."""
    try:
        info = decode_all(path)
        frames, lost = read_frames(path, range(info.promised or info.frames))
    except BadFileError as error:
        return named(told, path, error.reason), ""
    problems = []
    if (is_named := f"{path} " in told) != bool(lost or info.promised not in (None, info.frames)):
        problems.append(f"named: {is_named}, lost: {lost}, {info}")
    numbers = sorted(chosen.choices(range(len(frames)), k=5))
    again = read_frames(path, numbers)[0]
    if (again != frames[numbers]).any():
        problems.append(f"frames {numbers} read alone are others")
    if is_named:
        return problems, ""
    expected = frames_of(path, info.width, info.height)
    if len(expected) != len(frames):
        return [*problems, f"{len(frames)} frames, of ffmpeg {len(expected)}"], ""
    differences = [np.abs(ours.astype(int) - theirs).mean() for ours, theirs in zip(frames, expected, strict=True)]
    if max(differences) >= 3:
        problems.append(f"differs by {max(differences):.1f} in frame {int(np.argmax(differences))}")
    return problems, ""


def videos(folder: Path, seed: int) -> list[Row]:
    """Compare frames; check, train, test and predict all videos, of which each has to be used or named."""
    films, chosen = make_films(folder / "films"), random.Random(seed)
    row = Row("a video, its frames compared with ffmpeg's; one that is cut or damaged is named", folder)
    cgnl("data", "check", folder / "films", "--workers", "2", "--out", folder / "check.csv")
    told = "\n".join(" ".join(line) for line in csv_rows(folder / "check.csv"))
    for film in films:
        row.attempt(film.name, compared, film, chosen, told)
    return [row, *in_commands(folder, films)]


def in_commands(folder: Path, films: list[Path]) -> list[Row]:
    """Train, test and predict with all videos, half of them in each of two classes."""
    data, run = folder / "data", folder / "run"
    for part in ("train", "test"):
        for number, film in enumerate(films):
            target = data / part / f"class_{number % 2}" / film.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(film, target)
    bad = [film for film in films if not looked_at(film)]
    # frames that are damaged matter where they are wanted; those that are missing always
    cut = [film for film in films if "short" in looked_at(film)]
    maybe = [film for film in films if looked_at(film) - {"whole"}]
    rows = [Row(f"videos of all sorts at once {what}", folder) for what in ("in training", "in a test", "predicted")]
    code, output = cgnl("train", *VIDEOS, f"--data.root={data}", f"--run={run}")
    rows[0].add(wrong(code, output, 0) + lists_in(run, bad, cut, maybe), output)
    code, output = cgnl("evaluate", run, f"--out={folder / 'out'}")
    problems = lists_in(folder / "out", bad, cut, maybe)
    if len(csv_rows(folder / "out" / "predictions.csv")) != len(films) - len(bad):
        problems.append("predictions.csv lacks videos")
    rows[1].add(wrong(code, output, 0) + problems, output)
    for film in films:
        code, output = cgnl("predict", run, film, "--json")
        found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        problems = wrong(code, output, 2 if film in bad else 0)
        problems += named(output, f"{film} ") if film in (*bad, *cut) else []
        if len(found) != 1 or ("error" in found[0]) != (film in bad):
            problems.append(f"the rows are {found}")
        rows[2].add(problems, output, case=film.name)
    return rows


def looked_at(film: Path) -> set[str]:
    """Return nothing for a video that cannot be read, else what is right or wrong with it."""
    try:
        found, all_decoded = probe(film), decode_all(film)
    except BadFileError:
        return set()
    words = {"short": found, "damaged": all_decoded}
    return {word for word, info in words.items() if info.promised not in (None, info.frames)} or {"whole"}


def lists_in(folder: Path, bad: list[Path], cut: list[Path], maybe: list[Path]) -> list[str]:
    """Say which videos the lists in a folder lack, or name wrongly."""
    problems = []
    for name, least, most in (("bad_files.csv", bad, bad), ("damaged_videos.csv", cut, maybe)):
        listed = {Path(row[0]).name for row in csv_rows(folder / name)}
        if not {film.name for film in least} <= listed <= {film.name for film in most}:
            problems.append(f"{name} lists {sorted(listed)}, not {sorted(film.name for film in least)}")
    return problems
