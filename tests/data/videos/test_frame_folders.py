"""Folders of frames against the arrays that were saved."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cgnl.data.decoding import BadFileError
from cgnl.data.videos import GuardedReader, VideoInfo, decode_all, index_videos, probe, read_frames
from cgnl.settings.video import VideoDataConfig


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 6, 10, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, pictures) -> Path:
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"img_{number}.{'bmp' if number % 2 else 'PNG'}")
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / "._img_3.png").write_text("not one either")
    return tmp_path


def test_frames_in_natural_order_of_names(folder, pictures):
    assert probe(folder) == decode_all(folder) == VideoInfo(12, 0.0, 10, 6, None)
    indices = [10, 2, 11, 2, 0]
    frames, lost = read_frames(folder, indices)
    np.testing.assert_array_equal(frames, pictures[indices])
    assert lost == 0
    with GuardedReader() as reader:
        np.testing.assert_array_equal(reader.read(folder, indices)[0], pictures[indices])
        np.testing.assert_array_equal(reader.read(folder, range(12))[0], pictures)


def test_names_of_digits_and_letters_sort_together(tmp_path, pictures):
    names = ["1.png", "2.png", "2b.png", "10.png", "a.png", "a1.png", "a02.png", "b9.png"]
    for name, picture in zip(names, pictures, strict=False):
        Image.fromarray(picture).save(tmp_path / name)
    np.testing.assert_array_equal(read_frames(tmp_path, range(len(names)))[0], pictures[: len(names)])


def test_numbers_past_the_end(folder, pictures):
    frames, lost = read_frames(folder, [11, 12, 40])
    np.testing.assert_array_equal(frames, pictures[[11, 11, 11]])
    assert lost == 2


def test_a_frame_of_another_size(folder):
    Image.new("RGB", (10, 7)).save(folder / "img_5.bmp")
    assert read_frames(folder, [4, 6])[1] == 0
    for read in (decode_all, lambda folder: read_frames(folder, [4, 5])):
        with pytest.raises(
            BadFileError, match="is 10 x 7 pixels, but the first frame of its folder is 10 x 6"
        ) as caught:
            read(folder)
        assert caught.value.path == folder / "img_5.bmp"


def test_a_broken_frame(folder):
    (folder / "img_7.bmp").write_bytes(b"BM")
    with GuardedReader() as reader:
        for read in (read_frames, reader.read):
            with pytest.raises(BadFileError, match="cannot be decoded") as caught:
                read(folder, [7])
            assert caught.value.path == folder / "img_7.bmp"


def test_a_folder_without_frames(tmp_path):
    (tmp_path / "video.mp4").write_bytes(b"x")
    with pytest.raises(BadFileError, match="is a folder without frames"):
        probe(tmp_path)


@pytest.fixture
def with_flow(tmp_path, pictures) -> Path:
    """Frames with optical flow beside them, as many tools write it: one picture less for each direction."""
    for number, picture in enumerate(pictures, 1):
        Image.fromarray(picture).save(tmp_path / f"img_{number:05d}.png")
    for number in range(1, len(pictures)):
        for name in ("flow_x", "flow_y"):
            Image.new("L", (10, 6)).save(tmp_path / f"{name}_{number:05d}.jpg")
    return tmp_path


@pytest.mark.parametrize("pattern", [None, "img_{:05d}.png", "img_{}.png", "img_%05d.png", "img_*.png", "*.png"])
def test_frames_among_optical_flow(with_flow, pictures, pattern):
    info = VideoInfo(12, 0.0, 10, 6, None)
    assert probe(with_flow, pattern) == decode_all(with_flow, pattern) == info
    with GuardedReader(frame_pattern=pattern) as reader:
        assert reader.probe(with_flow) == info
        np.testing.assert_array_equal(reader.read(with_flow, [3, 0, 11])[0], pictures[[3, 0, 11]])
    seen = index_videos([with_flow], with_flow.parent, workers=1, progress=False, frame_pattern=pattern)
    assert seen == {with_flow: info}


def test_the_index_goes_by_the_pattern(with_flow):
    for pattern, frames in ((None, 12), ("flow_x_{:05d}.jpg", 11), ("img_{:05d}.png", 12)):
        seen = index_videos([with_flow], with_flow.parent, workers=1, progress=False, frame_pattern=pattern)
        assert seen[with_flow].frames == frames


def test_series_of_which_any_may_be_the_frames(tmp_path):
    for name in ("rgb", "depth"):
        for number in range(4):
            Image.new("RGB", (10, 6)).save(tmp_path / f"{name}_{number}.png")
    with pytest.raises(BadFileError, match=r"several series of pictures \(depth_\*, rgb_\*\): .*data.frame_pattern"):
        probe(tmp_path)
    assert probe(tmp_path, "rgb_{}.png").frames == 4


def test_a_pattern_that_no_picture_has(with_flow):
    with pytest.raises(BadFileError, match=r"is a folder without frames named image_\*\.jpg \(data\.frame_pattern\)"):
        probe(with_flow, "image_*.jpg")


@pytest.mark.parametrize("pattern", ["img.jpg", "frames/{}.jpg", ""])
def test_what_is_no_pattern(tmp_path, pattern):
    with pytest.raises(ValueError, match=r"data.frame_pattern \(.*\) must be a file name with a place for the number"):
        VideoDataConfig(frame_pattern=pattern)


def test_pictures_beside_videos_are_no_frames(tmp_path, pictures):
    (tmp_path / "a.mp4").write_bytes(b"x")
    Image.fromarray(pictures[0]).save(tmp_path / "thumbnail_1.jpg")
    with pytest.raises(BadFileError, match=r"holds videos \(a.mp4\), so its pictures are not taken for frames"):
        probe(tmp_path)
    assert probe(tmp_path, "thumbnail_{}.jpg").frames == 1
