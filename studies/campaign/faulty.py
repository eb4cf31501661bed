"""Faulty images and lists: a name for each, how it is made, and the reason that a command should give."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin


def encoded(kind: str, width: int = 40, height: int = 40, seed: int = 0, **options) -> bytes:
    """Return a file of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def _png_of(width: int, height: int) -> bytes:
    """Return the beginning of a PNG file of a size, with a few pixels."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")):
        parts.append(struct.pack(">I", len(content)) + name + content)
        parts.append(struct.pack(">I", zlib.crc32(name + content)))
    return b"".join(parts)


def _damaged(content: bytes, place: float) -> bytes:
    at = int(len(content) * place)
    return content[:at] + bytes(255 - byte for byte in content[at : at + 8]) + content[at + 8 :]


def _text_bomb() -> bytes:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "0" * 80_000_000, zip=True)
    return encoded("png", pnginfo=texts)


JPEG, PNG, WEBP, BMP = (encoded(kind) for kind in ("jpeg", "png", "webp", "bmp"))
IMAGES: dict[str, tuple[bytes | Callable[[Path], object], str]] = {
    "empty.jpg": (b"", "0 bytes"),
    "page.jpg": (b"<!DOCTYPE html><html>404</html>", "HTML"),
    "tiff.jpg": (encoded("tiff"), "TIFF"),
    "eps.jpg": (encoded("eps"), "PostScript"),
    "gif.png": (encoded("gif"), "GIF"),
    "heic.jpg": (b"\0\0\0\x18ftypheic" + bytes(100), "HEIC"),
    "noise.png": (bytes(range(7, 200)), "is not a JPEG"),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "cannot be decoded"),
    "cut.png": (PNG[: len(PNG) // 2], "cannot be decoded"),
    "cut.webp": (WEBP[: len(WEBP) // 2], "cannot be decoded"),
    "cut.bmp": (BMP[: len(BMP) // 2], "cannot be decoded"),
    "header.jpg": (JPEG[:100], "cannot be decoded"),
    "damaged.png": (_damaged(PNG, 0.5), "cannot be decoded"),
    "huge.png": (_png_of(20000, 20000), "more than 100 megapixels"),
    "thin.png": (encoded("png", 4000, 1), "more than 100 times"),
    "text.png": (_text_bomb(), "cannot be decoded"),
    "pipe.jpg": (os.mkfifo, "not a regular file"),
    "dangling.jpg": (lambda path: path.symlink_to("nowhere.jpg"), "does not exist"),
}


def make(path: Path, content: bytes | Callable[[Path], object]) -> Path:
    """Write a file, or let a function make it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    return path


# a list's lines in place of line 3, and what the message has to say; the paths exist below the root
LISTS: dict[str, tuple[bytes, str]] = {
    "no label": (b"train/class_0/2.jpg", "line 3: read 'train/class_0/2.jpg', expected `path label`"),
    "a word as label": (b"train/class_0/2.jpg bird", "line 3: read the label 'bird'"),
    "a fraction as label": (b"train/class_0/2.jpg 1.5", "line 3: read the label '1.5'"),
    "a negative label": (b"train/class_0/2.jpg -1", "line 3: read label -1"),
    "a label beyond the classes": (b"train/class_0/2.jpg 1000", "line 3: read label 1000"),
    "a label of 30 digits": (b"train/class_0/2.jpg " + b"9" * 30, "line 3: read the label"),
    "a label in Arabic digits": ("train/class_0/2.jpg \u0662".encode(), "line 3: read the label"),
    "a path that climbs out": (b"../outside.jpg 0", r"line 3: .*\.\./outside\.jpg"),
    "an absolute path": (b"/etc/hostname 0", "line 3: .*/etc/hostname"),
    "an address": (b"http://127.0.0.1:9/a.jpg 0", "line 3: .*http://127.0.0.1:9/a.jpg"),
    "a file address": (b"file:///etc/hostname 0", "line 3: .*file:///etc/hostname"),
    "a NUL in the path": (b"train/class_0/\x002.jpg 0", "line 3: "),
    "a link that leads out": (b"out.jpg 0", r"line 3: .*out\.jpg"),
    "a folder of links that leads out": (b"outfolder/outside.jpg 0", r"line 3: .*outfolder"),
    "a Windows path": (b"train\\class_0\\2.jpg 0", r"line 3: |missing"),
    "a name too long for a disk": (b"train/" + b"x" * 5000 + b".jpg 0", "line 3|missing"),
}
WHOLE_LISTS: dict[str, tuple[bytes, str]] = {
    "an empty list": (b"", "names no images"),
    "blank lines": (b"\n \n\t\n", "names no images"),
    "a picture as list": (JPEG, "line 1"),
    "labels from 1": (
        b"".join(b"train/class_%d/%d.jpg %d\n" % (k, n, k + 1) for k in range(3) for n in range(8)),
        "label",
    ),
    "UTF-16": (
        "".join(f"train/class_{k}/{n}.jpg {k}\n" for k in range(3) for n in range(8)).encode("utf-16"),
        "line 1",
    ),
    "no file exists": (b"".join(b"no/%d.jpg %d\n" % (n, n % 3) for n in range(24)), "missing"),
    "a CSV header": (
        b"path label\n" + b"".join(b"train/class_%d/1.jpg %d\n" % (k, k) for k in range(3)),
        "line 1: read the label 'label'",
    ),
}
GOOD_LISTS: dict[str, bytes] = {
    "CRLF": b"".join(b"train/class_%d/%d.jpg %d\r\n" % (k, n, k) for k in range(3) for n in range(8)),
    "a byte order mark": b"\xef\xbb\xbf"
    + b"".join(b"train/class_%d/%d.jpg %d\n" % (k, n, k) for k in range(3) for n in range(8)),
    "tabs and blank lines": b"\n\n".join(b"train/class_%d/%d.jpg\t%d" % (k, n, k) for k in range(3) for n in range(8)),
    "a space in a path": b"".join(b"a b/class_%d %d.jpg %d\n" % (k, n, k) for k in range(3) for n in range(8)),
    "Latin-1": b"".join(b"\xe9t\xe9/%d-%d.jpg %d\n" % (k, n, k) for k in range(3) for n in range(8)),
}
