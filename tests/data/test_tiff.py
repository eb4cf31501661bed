"""TIFF files that tifffile wrote, of each type and layout, against the arrays that were saved; and bad ones."""

import contextlib
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cgnl.data import tiff
from cgnl.data.decoding import BadFileError
from cgnl.data.pixels import check_channels, open_pixels, picture_in_words, picture_of, size_of

tifffile = pytest.importorskip("tifffile")

LAYOUTS = {
    "planes": {"planarconfig": "separate", "photometric": "minisblack"},
    "samples": {"planarconfig": "contig", "photometric": "minisblack"},
    "tiles": {"planarconfig": "contig", "photometric": "minisblack", "tile": (16, 16)},
    "deflate": {"planarconfig": "contig", "photometric": "minisblack", "compression": "zlib", "predictor": True},
    "lzw": {"planarconfig": "separate", "photometric": "minisblack", "compression": "lzw"},
    "big endian": {"planarconfig": "contig", "photometric": "minisblack", "byteorder": ">"},
    "BigTIFF": {"planarconfig": "contig", "photometric": "minisblack", "bigtiff": True},
    # what tifffile makes of a bare array: pages
    "bare, first": {},
    "bare, last": {},
    "pages": {"photometric": "minisblack", "metadata": None},
    "ImageJ": {"imagej": True},
}
FIRST = ("planes", "lzw", "bare, first", "pages", "ImageJ")


def drawn(kind: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if kind == "float32":
        return generator.normal(0, 3, shape).astype(np.float32)
    return generator.integers(0, np.iinfo(kind).max + 1, shape, dtype=kind)


def scaled(values: np.ndarray) -> np.ndarray:
    return values / np.float32(65535) if values.dtype == np.uint16 else values


def reason(path: Path, channels: int) -> str:
    with pytest.raises(BadFileError) as caught:
        open_pixels(path, channels)
    assert caught.value.path == path
    return caught.value.reason


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_values_that_were_saved(tmp_path, kind, layout):
    values, options = drawn(kind, (21, 34, 5)), LAYOUTS[layout]
    stored = np.moveaxis(values, -1, 0) if layout in FIRST else values
    path = tmp_path / "image.dat"
    tifffile.imwrite(path, np.ascontiguousarray(stored), **options)
    read = open_pixels(path, 5)
    assert read.dtype == ("uint8" if kind == "uint8" else "float32")
    np.testing.assert_allclose(read, scaled(values), rtol=1e-6)
    assert size_of(path, 5) == (34, 21)


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_any_number_of_channels(tmp_path, channels):
    values = drawn("uint8", (8, 9, channels))
    tifffile.imwrite(tmp_path / "a.tif", values, planarconfig="contig", photometric="minisblack")
    np.testing.assert_array_equal(open_pixels(tmp_path / "a.tif", channels), values)


def test_one_and_three_channels(tmp_path):
    grey, colour = drawn("uint8", (8, 9)), drawn("uint8", (8, 9, 3))
    tifffile.imwrite(tmp_path / "grey.tif", grey)
    tifffile.imwrite(tmp_path / "colour.tif", colour, photometric="rgb")
    tifffile.imwrite(tmp_path / "inverse.tif", 255 - grey, photometric="miniswhite")
    np.testing.assert_array_equal(open_pixels(tmp_path / "grey.tif", 1)[..., 0], grey)
    np.testing.assert_array_equal(open_pixels(tmp_path / "inverse.tif", 1)[..., 0], grey)
    image = open_pixels(tmp_path / "colour.tif", 3)
    assert isinstance(image, Image.Image)
    np.testing.assert_array_equal(image, colour)
    # as of a PNG: grey is repeated, and colours lose theirs
    np.testing.assert_array_equal(open_pixels(tmp_path / "grey.tif", 3), np.repeat(grey[..., None], 3, 2))
    as_pillow = np.asarray(Image.fromarray(colour).convert("L")).astype(int)
    assert np.abs(open_pixels(tmp_path / "colour.tif", 1)[..., 0] - as_pillow).max() <= 1
    deep = drawn("uint16", (8, 9, 3))
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    np.testing.assert_allclose(open_pixels(tmp_path / "deep.tif", 3), deep / 65535, rtol=1e-6)


def test_pillow_and_tifffile_agree_on_a_file_of_pillow(tmp_path):
    colour = drawn("uint8", (8, 9, 3))
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        Image.fromarray(colour).save(tmp_path / "a.tif", compression=compression)
        np.testing.assert_array_equal(open_pixels(tmp_path / "a.tif"), colour)
    Image.fromarray(np.full((16, 16, 3), (200, 40, 90), np.uint8)).save(tmp_path / "j.tif", compression="jpeg")
    assert np.abs(np.asarray(open_pixels(tmp_path / "j.tif")).astype(int) - (200, 40, 90)).max() <= 4


@pytest.mark.parametrize("value", range(1, 9))
def test_images_are_turned_as_a_jpeg_with_that_orientation(tmp_path, value):
    from PIL import ImageOps

    values = drawn("uint8", (4, 6, 3))
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extratags=[(274, "H", 1, value, True)])
    image = Image.fromarray(values)
    image.getexif()[274] = value
    np.testing.assert_array_equal(open_pixels(tmp_path / "a.tif"), ImageOps.exif_transpose(image))


def test_another_number_of_channels_is_named(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, drawn("uint8", (8, 9, 4)), planarconfig="contig", photometric="minisblack")
    assert reason(path, 5) == "has 4 channels (8 x 9 x 4 values), but 5 are expected (data.channels)"
    assert "has 4 channels" in reason(path, 3)
    tifffile.imwrite(path, drawn("uint8", (7, 8, 9)))
    assert "has 7 channels" in reason(path, 5)
    tifffile.imwrite(path, drawn("uint8", (8, 9)))
    assert "has 1 channel (8 x 9 values), but 5 are expected" in reason(path, 5)
    # three channels that are no colours have no grey
    tifffile.imwrite(path, drawn("uint8", (8, 9, 3)), planarconfig="contig", photometric="minisblack")
    assert "has 3 channels" in reason(path, 1)
    tifffile.imwrite(path, drawn("uint8", (2, 5, 8, 9)))
    assert reason(path, 5) == "holds 2 x 5 x 8 x 9 values, which are not one image"
    Image.new("RGB", (8, 9)).save(tmp_path / "a.png")
    assert (
        reason(tmp_path / "a.png", 5) == "is no TIFF file and has 1 or 3 channels, but 5 are expected (data.channels)"
    )


def test_other_values_and_colours_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    for kind in ("int16", "uint32", "float64", "bool"):
        tifffile.imwrite(path, np.zeros((8, 9), kind))
        words = "1-bit" if kind == "bool" else kind
        assert reason(path, 1) == f"holds {words} values, and only uint8, uint16, float32 are read"
    values = np.zeros((5, 8, 9), np.float32)
    for bad in (np.nan, np.inf):
        values[2, 3, 4] = bad
        tifffile.imwrite(path, values)
        assert reason(path, 5) == "holds values that are not finite (NaN or infinity)"
    tifffile.imwrite(path, drawn("uint8", (8, 9)), photometric="palette", colormap=np.zeros((3, 256), np.uint16))
    assert "has a colour palette, which is not read" in reason(path, 3)


def cut(path: Path, layout: str, kept: float) -> Path:
    values = drawn("uint8", (40, 50, 5))
    stored = np.moveaxis(values, -1, 0) if layout in FIRST else values
    tifffile.imwrite(path, np.ascontiguousarray(stored), **LAYOUTS[layout])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.55])
def test_a_truncated_file_is_bad(tmp_path, layout, kept):
    assert reason(cut(tmp_path / "a.tif", layout, kept), 5)


# of the others, directories that are not needed come after the pixels
@pytest.mark.parametrize("layout", ["planes", "samples", "tiles", "deflate", "lzw", "big endian", "BigTIFF"])
def test_a_file_that_lacks_its_last_bytes_is_bad(tmp_path, layout):
    assert "is truncated: its pixels end at byte" in reason(cut(tmp_path / "a.tif", layout, 0.999), 5)


@pytest.mark.parametrize("layout", ["samples", "deflate", "bare, first"])
def test_damage_ends_in_a_bad_file_or_in_an_image(tmp_path, layout):
    whole = cut(tmp_path / "a.tif", layout, 1).read_bytes()
    generator = np.random.default_rng(1)
    for number in range(60):
        damaged = bytearray(whole)
        places = generator.integers(4, 400 if number % 2 else len(whole), 6)
        for place, value in zip(places, generator.integers(0, 256, 6), strict=True):
            damaged[place % len(whole)] = value
        (tmp_path / "a.tif").write_bytes(damaged)
        with contextlib.suppress(BadFileError):
            assert open_pixels(tmp_path / "a.tif", 5).shape[-1] == 5


def header(width: int, height: int, *, count: int = 1, compression: int = 1, strip: bytes = b"") -> bytes:
    """A TIFF file put together by hand."""
    tags = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1)),
        *((273, 4, 1, 200), (277, 3, 1, count), (278, 4, 1, height), (279, 4, 1, len(strip) or width * height)),
    ]
    rows = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    directory = struct.pack("<H", len(tags)) + rows + struct.pack("<I", 0)
    return (b"II*\0" + struct.pack("<I", 8) + directory).ljust(200, b"\0") + strip


def test_sizes_are_seen_before_pixels_are_read(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(header(20000, 20000))
    assert reason(path, 1) == "is 20000 x 20000 pixels, more than 100 megapixels"
    path.write_bytes(header(8, 2000))
    assert reason(path, 1) == "is 8 x 2000 pixels, with one side more than 100 times the other"
    path.write_bytes(header(5000, 5000))
    assert "is truncated: its pixels end at byte 25000200, and it has 200" in reason(path, 1)


def test_a_small_file_does_not_unpack_into_all_of_the_memory(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(header(16, 16, compression=8, strip=zlib.compress(bytes(400_000_000), 9)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(BadFileError):
        open_pixels(path, 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_a_directory_that_leads_to_itself_ends(tmp_path):
    content = bytearray(header(8, 8, strip=bytes(64)))
    content[8 + 2 + 9 * 12 : 8 + 2 + 9 * 12 + 4] = struct.pack("<I", 8)
    (tmp_path / "a.tif").write_bytes(content)
    with contextlib.suppress(BadFileError):
        assert open_pixels(tmp_path / "a.tif", 1).shape == (8, 8, 1)


def test_without_tifffile_the_extra_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, drawn("uint8", (8, 9)))
    compressed = tmp_path / "b.tif"
    tifffile.imwrite(compressed, drawn("uint8", (8, 9)), compression="zlib")

    def lacking(name):
        monkeypatch.setattr(tiff, "find_spec", lambda asked: None if asked == name else object())

    lacking("imagecodecs")
    assert open_pixels(path, 1).shape == (8, 9, 1)
    assert "which needs imagecodecs: pip install 'cgnl[tiff]'" in reason(compressed, 1)
    lacking("tifffile")
    assert reason(path, 1) == "is a TIFF file, which needs tifffile: pip install 'cgnl[tiff]'"
    monkeypatch.setattr("cgnl.data.pixels.find_spec", lambda name: None)
    check_channels(1)
    with pytest.raises(ImportError, match=r"data.channels 5 is for TIFF files, and needs tifffile: pip install"):
        check_channels(5)


def test_grey_of_other_formats(tmp_path):
    colour = drawn("uint8", (8, 9, 3))
    Image.fromarray(colour).save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_pixels(tmp_path / "a.png", 1)[..., 0], Image.fromarray(colour).convert("L"))
    deep = drawn("uint16", (8, 9))
    Image.fromarray(deep).save(tmp_path / "deep.png")
    read = open_pixels(tmp_path / "deep.png", 1)
    # all 16 bits are kept
    np.testing.assert_array_equal(np.round(read[..., 0].astype(float) * 65535), deep)
    pair = np.array([[[10, 255], [10, 0], [100, 51]]], dtype=np.uint8)
    Image.fromarray(pair, "LA").save(tmp_path / "alpha.png")
    assert (
        np.abs(open_pixels(tmp_path / "alpha.png", 1)[0, :, 0] - np.array([10, 255, 100 * 0.2 + 255 * 0.8])).max() <= 1
    )
    Image.fromarray(np.array([[1, 0]], bool)).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(open_pixels(tmp_path / "bits.png", 1)[..., 0], [[255, 0]])


def test_pictures_to_look_at():
    values = drawn("uint8", (8, 9, 5))
    np.testing.assert_array_equal(picture_of(values), values[..., :3])
    for channels in (1, 2):
        np.testing.assert_array_equal(picture_of(values[..., :channels]), np.repeat(values[..., :1], 3, 2))
    ramp = np.linspace(0.01, 0.02, 10_000, dtype=np.float32).reshape(100, 100, 1)
    shown = np.asarray(picture_of(ramp))
    assert (shown.min(), shown.max()) == (0, 255)
    assert picture_of(np.zeros((8, 9, 1), np.float32)).size == (9, 8)
    assert picture_in_words(3) is None
    assert picture_in_words(1).startswith("The network sees 1 channel, drawn in grey")
    assert "5 channels, of which the first three are drawn" in picture_in_words(5)
