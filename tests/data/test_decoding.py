"""Pixels and refusals of the image decoder, against values computed here from the arrays that were saved."""

import os
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cgnl.data.decoding import BadFileError, DataError, decoded_size, open_image, open_regular, resolve_inside


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def pixels(path: Path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def smooth(height: int = 24, width: int = 40) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * x + 20, 6 * y + 30, 200 - 2 * x - y], -1).astype(np.uint8)


def png(path: Path, header: tuple[int, int, int, int], rows: bytes, extra: bytes = b"") -> Path:
    """A PNG put together by hand; header is width, height, bit depth, colour type."""
    start = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0))
    end = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + start + extra + end)
    return path


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("bmp", {}), ("webp", {"lossless": True})])
def test_lossless_formats_give_the_pixels_that_were_saved(tmp_path, rng, suffix, options):
    array = rng.integers(0, 256, (7, 11, 3), dtype=np.uint8)
    path = tmp_path / "name-without-meaning.jpg"
    Image.fromarray(array).save(path, suffix, **options)
    np.testing.assert_array_equal(pixels(path), array)


def test_jpeg_gives_nearly_the_pixels_that_were_saved(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(smooth()).save(path, "JPEG", quality=98, subsampling=0)
    assert np.abs(pixels(path) - smooth()).max() <= 4


def test_grey_is_repeated_over_the_channels(tmp_path, rng):
    grey = rng.integers(0, 256, (5, 9), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(pixels(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, -1))
    Image.fromarray(smooth()[..., 0]).save(tmp_path / "grey.jpg", quality=98)
    read = pixels(tmp_path / "grey.jpg")
    assert np.abs(read - smooth()[..., :1]).max() <= 4


def test_one_bit(tmp_path):
    bits = np.array([[1, 0, 0, 1], [0, 1, 1, 0]], dtype=bool)
    Image.fromarray(bits).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(pixels(tmp_path / "bits.png"), np.repeat(bits[..., None] * 255, 3, -1))


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    grey = np.array([[0, 100, 255, 256], [1000, 32768, 65407, 65535]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    expected = np.round(grey / 65535 * 255).astype(int)
    np.testing.assert_array_equal(pixels(tmp_path / "deep.png"), np.repeat(expected[..., None], 3, -1))


def test_sixteen_bit_grey_with_a_transparent_value(tmp_path):
    row = struct.pack(">3H", 1000, 2000, 60000)
    path = png(tmp_path / "a.png", (3, 1, 16, 0), b"\0" + row, png_chunk(b"tRNS", struct.pack(">H", 2000)))
    np.testing.assert_array_equal(pixels(path)[0, :, 0], [4, 255, 233])


def test_sixteen_bit_colour(tmp_path, rng):
    values = rng.integers(0, 65536, (2, 3, 3))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    read = pixels(png(tmp_path / "deep.png", (3, 2, 16, 2), rows))
    assert np.abs(read - values / 257).max() <= 1


def test_sixteen_bit_colour_with_alpha(tmp_path):
    rows = b"\0" + np.array([[[65535, 0, 0, 32768], [0, 0, 0, 0]]], dtype=">u2").tobytes()
    read = pixels(png(tmp_path / "deep.png", (2, 1, 16, 6), rows))
    assert np.abs(read - [[[255, 127, 127], [255, 255, 255]]]).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_alpha_is_composited_on_white(tmp_path, rng, suffix):
    rgba = rng.integers(0, 256, (6, 8, 4), dtype=np.uint8)
    path = tmp_path / "image"
    Image.fromarray(rgba).save(path, suffix, **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(pixels(path) - expected).max() <= 1


def test_grey_with_alpha(tmp_path):
    pair = np.array([[[10, 255], [10, 0], [100, 51]]], dtype=np.uint8)
    Image.fromarray(pair, "LA").save(tmp_path / "la.png")
    expected = [10, 255, 100 * 0.2 + 255 * 0.8]
    assert np.abs(pixels(tmp_path / "la.png")[0] - np.array(expected)[:, None]).max() <= 1


def test_palette_with_and_without_transparency(tmp_path):
    colours = np.array([[200, 10, 30], [0, 250, 5], [7, 8, 9]], dtype=np.uint8)
    indices = np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "plain.png")
    np.testing.assert_array_equal(pixels(tmp_path / "plain.png"), colours[indices])
    image.save(tmp_path / "one.png", transparency=1)
    on_white = colours.copy()
    on_white[1] = 255
    np.testing.assert_array_equal(pixels(tmp_path / "one.png"), on_white[indices])
    image.save(tmp_path / "all.png", transparency=bytes([255, 0, 102]))
    expected = on_white.astype(float)
    expected[2] = colours[2] * 0.4 + 255 * 0.6
    assert np.abs(pixels(tmp_path / "all.png") - expected[indices]).max() <= 1


def test_transparent_colour_of_an_rgb_png(tmp_path):
    array = np.array([[[1, 2, 3], [9, 9, 9]]], dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "key.png", transparency=(9, 9, 9))
    np.testing.assert_array_equal(pixels(tmp_path / "key.png"), [[[1, 2, 3], [255, 255, 255]]])


def test_cmyk_jpeg(tmp_path):
    cmyk = np.zeros((16, 16, 4), dtype=np.uint8)
    cmyk[:8] = [255, 0, 0, 0]
    cmyk[8:] = [0, 100, 200, 50]
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    expected = (255 - cmyk[..., :3].astype(float)) * (255 - cmyk[..., 3:].astype(float)) / 255
    assert np.abs(pixels(tmp_path / "cmyk.jpg") - expected).max() <= 5


# Where the stored top left, top right, bottom left and bottom right corner belong in the upright image, in the
# words of the EXIF standard (for 6: "the 0th row is the visual right-hand side, the 0th column the visual top").
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("suffix", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, suffix, orientation):
    stored = smooth()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpeg": {"quality": 98, "subsampling": 0}, "webp": {"lossless": True}, "png": {}}[suffix]
    Image.fromarray(stored).save(tmp_path / "image", suffix, exif=exif, **options)
    assert np.abs(pixels(tmp_path / "image") - UPRIGHT[orientation](stored)).max() <= 4
    assert decoded_size(tmp_path / "image") == ((40, 24) if orientation < 5 else (24, 40))
    # Whoever turns the result once more by its EXIF data must find nothing to turn.
    assert open_image(tmp_path / "image").getexif().get(0x0112, 1) == 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_make_an_image_bad(tmp_path):
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        Image.fromarray(smooth()).save(tmp_path / "image.jpg", quality=98, subsampling=0, exif=exif)
        assert np.abs(pixels(tmp_path / "image.jpg") - smooth()).max() <= 4


@pytest.mark.parametrize("suffix", ["jpeg", "png", "webp", "bmp"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated(tmp_path, rng, suffix, part):
    path = tmp_path / "image.jpg"
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path, suffix)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(BadFileError, match="cannot be decoded"):
        open_image(path)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"<!DOCTYPE html><html></html>", "an HTML or XML page"),
        (b"\n  <html>", "an HTML or XML page"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript file"),
        (b"\xff\xd8\xff", "cannot be decoded"),
        (b"hello", "is not a JPEG, PNG, WebP or BMP file$"),
        (bytes(1000), "is not a JPEG, PNG, WebP or BMP file$"),
    ],
)
def test_files_that_are_no_images(tmp_path, content, rule):
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(BadFileError, match=rule) as caught:
        open_image(path)
    assert str(caught.value).startswith(f"{path} ")
    assert caught.value.path == path


@pytest.mark.parametrize(("suffix", "name"), [("tiff", "a TIFF"), ("gif", "a GIF"), ("eps", "a PostScript")])
def test_other_image_formats_named_jpg(tmp_path, suffix, name):
    Image.fromarray(smooth()).save(tmp_path / "image.jpg", suffix)
    with pytest.raises(BadFileError, match=f"but looks like {name} file"):
        open_image(tmp_path / "image.jpg")


def test_over_100_megapixels_is_refused_before_decoding(tmp_path):
    # No pixel data at all: a decoder that started would complain about that instead.
    path = png(tmp_path / "bomb.png", (10001, 10000, 8, 0), b"")
    with pytest.raises(BadFileError, match="is 10001 x 10000 pixels, more than 100 megapixels"):
        open_image(path)
    path = png(tmp_path / "huge.png", (2**31 - 1, 2**31 - 1, 8, 2), b"")
    with pytest.raises(BadFileError, match="more than 100 megapixels"):
        open_image(path)


def test_an_oversized_webp_is_refused(tmp_path):
    size = (16000 - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + size
    (tmp_path / "bomb.webp").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body + bytes(64))
    with pytest.raises(BadFileError, match="more than 100 megapixels"):
        open_image(tmp_path / "bomb.webp")


def test_just_100_megapixels_get_as_far_as_the_decoder(tmp_path):
    with pytest.raises(BadFileError, match="cannot be decoded"):
        open_image(png(tmp_path / "large.png", (10000, 10000, 1, 0), b""))


def test_a_thin_image_is_refused(tmp_path):
    Image.new("RGB", (1, 101)).save(tmp_path / "thin.png")
    with pytest.raises(BadFileError, match="1 x 101 pixels, with one side more than 100 times the other"):
        open_image(tmp_path / "thin.png")
    Image.new("RGB", (1, 100)).save(tmp_path / "thin.png")
    assert open_image(tmp_path / "thin.png").size == (1, 100)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.jpg"))
        for name in ("pipe.jpg", "folder.jpg", "link.jpg", "device.jpg", "socket.jpg"):
            with pytest.raises(BadFileError, match="not a regular file"):
                open_image(tmp_path / name)
    with pytest.raises(BadFileError, match="does not exist"):
        open_image(tmp_path / "none.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    with pytest.raises(BadFileError, match="cannot be read: Too many levels of symbolic links"):
        open_image(tmp_path / "loop.jpg")


def test_files_are_closed(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    Image.fromarray(smooth()).save(tmp_path / "good.png")
    before = len(list(Path("/proc/self/fd").iterdir()))
    image = open_image(tmp_path / "good.png")
    with pytest.raises(BadFileError):
        open_image(tmp_path / "bad.jpg")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert image.getpixel((0, 0)) == tuple(smooth()[0, 0])


def test_the_error_survives_a_change_of_process():
    import pickle

    error = pickle.loads(pickle.dumps(BadFileError("a.jpg", "is empty")))
    assert (str(error), error.path, error.reason) == ("a.jpg is empty", Path("a.jpg"), "is empty")
    assert isinstance(error, DataError)
    assert isinstance(error, ValueError)


def test_decoding_needs_no_torch():
    code = "import sys, cgnl.data.decoding, cgnl.data.scanning; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("../secret.jpg", "holds '..'"),
        ("a/../../secret.jpg", "holds '..'"),
        ("a/..", "holds '..'"),
        ("..\\secret.jpg", "holds '..'"),
        ("/etc/passwd", "is absolute"),
        ("//server/share.jpg", "is absolute"),
        ("C:\\image.jpg", "is absolute"),
        ("http://example.com/a.jpg", "is a URL"),
        ("file:///etc/passwd", "is a URL"),
        ("a\0.jpg", "holds a NUL"),
        ("", "is empty"),
        ("out.jpg", "symbolic link that leads out"),
        ("folder/a.jpg", "symbolic link that leads out"),
        ("chain.jpg", "symbolic link that leads out"),
        ("dangling.jpg", "symbolic link that leads out"),
    ],
)
def test_paths_that_leave_the_root_are_refused(tmp_path, path, rule):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    outside = tmp_path / "root-2"
    outside.mkdir()
    (tmp_path / "secret.jpg").touch()
    (outside / "a.jpg").touch()
    (root / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "folder").symlink_to(outside)
    (root / "chain.jpg").symlink_to("out.jpg")
    (root / "dangling.jpg").symlink_to(tmp_path / "none.jpg")
    with pytest.raises(DataError) as caught:
        resolve_inside(root, path, source="train.list", line=7)
    assert str(caught.value).startswith(f"train.list, line 7: the path {path!r} ")
    assert rule in str(caught.value)


def test_paths_inside_the_root_pass(tmp_path):
    root = tmp_path / "link"
    (tmp_path / "real" / "a b").mkdir(parents=True)
    root.symlink_to(tmp_path / "real")
    (root / "inner.jpg").symlink_to("a b/c.jpg")
    for path in ("a b/c.jpg", "inner.jpg", "not..there.jpg", "./x.jpg", "a:b.jpg"):
        assert resolve_inside(root, path, source="list") == root / path


def test_a_text_file_is_read_only_if_regular(tmp_path):
    os.mkfifo(tmp_path / "list")
    with pytest.raises(BadFileError, match="not a regular file"):
        open_regular(tmp_path / "list")
