"""Broken, foreign and hostile files: each is refused or counted, and nothing besides the file is ever opened."""

import contextlib
import ctypes
import http.server
import os
import struct
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from encoding import decode_sequentially, encode, number_of

from cgnl.data.decoding import BadFileError
from cgnl.data.videos import decode_all, probe, read_frames
from cgnl.data.videos.containers import open_video


@pytest.fixture(scope="module", autouse=True)
def silent():
    """Keep encoders from writing to the terminal."""
    av.logging.set_libav_level(av.logging.PANIC)


def refused(path: Path, rule: str) -> None:
    for read in (probe, decode_all, lambda path: read_frames(path, [0])):
        with pytest.raises(BadFileError, match=rule) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path} ")


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"<!DOCTYPE html><html></html>", "is not an MP4, .* but looks like an HTML or XML page"),
        (b"PK\x03\x04", "but looks like a zip archive"),
        (b"\xff\xd8\xff\xe0", "but looks like an image"),
        (b"hello", "or ASF video$"),
        (bytes(5000), "or ASF video$"),
        (b"RIFF\x10\0\0\0AVI LIST", "cannot be opened as a video|holds no"),
        (b"\0\0\0\x18ftypisom" + bytes(4000), "cannot be opened as a video|holds no"),
        (b"\x1a\x45\xdf\xa3" + bytes(4000), "cannot be opened as a video|holds no"),
        (b"FLV\x01\x05\0\0\0\x09" + bytes(400), "cannot be opened as a video|holds no"),
        (b"OggS\0\x02" + bytes(400), "cannot be opened as a video|holds no"),
    ],
)
def test_files_that_are_no_videos(tmp_path, content, rule):
    (tmp_path / "a.avi").write_bytes(content)
    refused(tmp_path / "a.avi", rule)


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    refused(tmp_path / "pipe.mp4", "is not a regular file")
    refused(tmp_path / "none.mp4", "does not exist")


def test_sound_alone_with_a_cover_picture(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as output:
        sound = output.add_stream("aac", rate=8000, layout="mono")
        cover = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        output.mux(cover.encode(av.VideoFrame(32, 32, "yuvj420p")))
        output.mux(cover.encode(None))
        for block in range(8):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.rate, silence.pts = 8000, block * 1024
            output.mux(sound.encode(silence))
        output.mux(sound.encode(None))
    with av.open(str(path)) as container:
        assert container.streams.audio
    refused(path, "holds no video stream")


def test_a_video_stream_without_frames(tmp_path):
    path = encode(tmp_path / "a.mp4", frames=3)
    data = path.read_bytes()
    start = data.index(b"stsz")
    path.write_bytes(data[: start + 12] + struct.pack(">I", 0) + data[start + 16 :])
    refused(path, "holds no frame that can be decoded|cannot be opened")
    with av.open(str(tmp_path / "b.avi"), "w") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        output.start_encoding()
    refused(tmp_path / "b.avi", "holds no frame that can be decoded|cannot be opened")


def test_over_100_megapixels_is_refused_before_decoding(tmp_path):
    path = encode(tmp_path / "a.mp4", "mjpeg", frames=2, pixel_format="yuvj420p")
    data = path.read_bytes()
    in_container, in_pictures = struct.pack(">HH", 96, 64), struct.pack(">HH", 64, 96)
    assert (data.count(in_container), data.count(in_pictures)) == (1, 2)
    huge = struct.pack(">HH", 20000, 20000)
    path.write_bytes(data.replace(in_container, huge).replace(in_pictures, huge))
    refused(path, "100 megapixels")
    path.write_bytes(data.replace(in_pictures, huge))
    refused(path, "100 megapixels")
    fits = struct.pack(">HH", 640, 480)  # the same change, to a size that is allowed
    path.write_bytes(data.replace(in_container, fits).replace(in_pictures, fits))
    assert read_frames(path, [0])[1] == 0


@pytest.mark.parametrize(("width", "height"), [(1640, 16), (16, 1640)])
def test_a_frame_much_longer_than_wide_is_refused(tmp_path, width, height):
    """Resized to a shorter side of 256, a clip of 8192 x 16 would take 25 GB."""
    refused(encode(tmp_path / "a.mp4", frames=2, width=width, height=height), "one side more than 100 times the other")
    path = encode(tmp_path / "b.mp4", frames=2, width=width - 40 * (width > 40), height=height - 40 * (height > 40))
    assert read_frames(path, [0])[1] == 0


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mp4", {"options": {"g": "12"}, "muxer": {"movflags": "faststart"}}),
        ("a.avi", {"codec": "mpeg4", "options": {"g": "12"}}),
        ("a.mkv", {"options": {"g": "12"}}),
        ("a.ts", {"options": {"g": "12"}}),
    ],
)
def test_a_video_cut_in_half(tmp_path, name, settings):
    whole = encode(tmp_path / name, frames=80, **settings)
    reference = decode_sequentially(whole)
    half = tmp_path / f"half-{name}"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    info = probe(half)
    assert 20 < info.frames < 70
    counted = decode_all(half).frames
    assert counted <= info.frames <= counted + 4
    if name != "a.ts":  # an MPEG transport stream has no header that could promise anything
        assert info.promised == pytest.approx(80, abs=2)
    frames, lost = read_frames(half, [3, counted - 6, 79])
    assert lost == 1
    assert [number_of(frame) for frame in frames[:2]] == [3, counted - 6]
    np.testing.assert_array_equal(frames[0], reference[3])


def test_an_mp4_whose_directory_is_cut_off(tmp_path):
    path = encode(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[:-2000])
    refused(path, "cannot be opened as a video")


def test_garbled_packets_are_counted_and_replaced_by_the_nearest_frame(tmp_path):
    path = encode(tmp_path / "a.mp4", frames=60, options={"g": "1", "bf": "0"})
    with open_video(path) as (container, stream):
        places = [(packet.pos, packet.size) for packet in container.demux(stream) if packet.size]
    data = bytearray(path.read_bytes())
    for number in (20, 21, 22, 23, 40):
        position, size = places[number]
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    assert probe(path).frames == probe(path).promised == 60
    assert decode_all(path).frames == 55
    frames, lost = read_frames(path, [19, 20, 21, 22, 23, 24, 40, 41, 22])
    assert lost == 6
    assert [number_of(frame) for frame in frames] == [19, 19, 19, 24, 24, 24, 39, 41, 24]
    frames, lost = read_frames(path, [10, 50])
    assert lost == 0
    assert [number_of(frame) for frame in frames] == [10, 50]


@pytest.mark.parametrize(
    ("name", "settings", "promised"),
    [("a.mp4", {}, 60), ("a.ts", {}, None), ("a.avi", {"codec": "mpeg4", "options": {"g": "1", "qscale": "2"}}, 60)],
)
def test_frames_that_the_decoder_calls_damaged_are_counted_and_used(tmp_path, name, settings, promised):
    path = encode(tmp_path / name, **{"frames": 60, "options": {"g": "1", "bf": "0"}, **settings})
    whole = decode_sequentially(path)
    with open_video(path) as (container, stream):
        places = [(packet.pos, packet.size) for packet in container.demux(stream) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size in (places[20], places[40]):
        middle = position + size * 2 // 3
        data[middle : middle + 16] = b"\xff" * 16
    path.write_bytes(data)
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1  # how a decoder mends a frame depends on it
        reference = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert len(reference) == 60
    wrong = [number for number in range(60) if (reference[number] != whole[number]).any()]
    assert wrong == [20, 40]
    assert (probe(path).frames, probe(path).promised) == (60, promised)
    assert (decode_all(path).frames, decode_all(path).promised) == (58, 60)
    frames, lost = read_frames(path, [19, 20, 21, 40])
    assert lost == 2
    np.testing.assert_array_equal(frames, reference[[19, 20, 21, 40]])
    assert read_frames(path, [19, 21, 50])[1] == 0


def test_a_long_garbled_stretch(tmp_path):
    path = encode(tmp_path / "a.mp4", frames=200, options={"g": "1", "bf": "0"})
    with open_video(path) as (container, stream):
        places = [(packet.pos, packet.size) for packet in container.demux(stream) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size in places[20:180]:
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    frames, lost = read_frames(path, [10, 30])
    assert ([number_of(frame) for frame in frames], lost) == ([10, 19], 1)
    frames, lost = read_frames(path, [170, 190])
    assert ([number_of(frame) for frame in frames], lost) == ([180, 190], 1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["a.mp4", "b.avi", "c.mkv"])
def test_noise_in_the_file_never_raises_anything_else(tmp_path, name, seed):
    codec = "mpeg4" if name == "b.avi" else "libx264"
    path = encode(tmp_path / name, codec, options={"g": "12"})
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    rng = np.random.default_rng(seed)
    places = rng.integers(0, len(data), max(4, len(data) // 300))
    data[places] = rng.integers(0, 256, len(places))
    path.write_bytes(data.tobytes())
    for read in (probe, decode_all, lambda path: read_frames(path, [5, 50, 30])):
        try:
            result = read(path)
        except BadFileError:
            continue
        if isinstance(result, tuple):
            assert result[0].shape == (3, *result[0].shape[1:])


class OpenedFiles:
    """Tells whether anyone opens a file, as the system sees it (inotify)."""

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self.descriptor, os.fsencode(path), 0x20) > 0  # IN_OPEN

    def any(self) -> bool:
        try:
            return bool(os.read(self.descriptor, 4096))
        except BlockingIOError:
            return False


def with_external_reference(path: Path, other: Path) -> None:
    """Make the samples of a QuickTime file lie in another file, by an alias as Apple's tools write it."""
    data = path.read_bytes()
    target = os.fsencode(other)
    alias = bytes(10) + bytes([0]) + bytes(27) + bytes(12) + bytes([0]) + bytes(63) + bytes(16)
    alias += struct.pack(">hh", 1, 1) + bytes(16)
    alias += struct.pack(">hH", 2, len(target)) + target + bytes(len(target) % 2) + struct.pack(">hH", -1, 0)
    entry = struct.pack(">I4sI", len(alias) + 12, b"alis", 0) + alias
    start = data.index(b"dref") + 12
    old = struct.unpack(">I", data[start : start + 4])[0]
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        place = data.index(name) - 4
        size = struct.unpack(">I", data[place : place + 4])[0] + len(entry) - old
        data = data[:place] + struct.pack(">I", size) + data[place + 4 :]
    path.write_bytes(data[:start] + entry + data[start + old :])


def test_a_quicktime_file_that_refers_to_another(tmp_path):
    path = encode(tmp_path / "a.mov", options={"g": "12"})
    other = Path(encode(tmp_path / "other.mov", options={"g": "12"}))
    with_external_reference(path, other)
    opened = OpenedFiles(other)
    refused(path, "holds no frame that can be decoded")
    assert not opened.any()
    options = {"enable_drefs": "1", "use_absolute_path": "1"}
    with contextlib.suppress(av.FFmpegError), av.open(str(path), options=options) as container:
        next(container.decode(video=0))
    assert opened.any(), "the reference leads nowhere, so the test proves nothing"


def playlists(other: Path) -> dict[str, bytes]:
    segment = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n%s\n#EXT-X-ENDLIST\n"
    return {
        "m3u8": segment % os.fsencode(other),
        "m3u8-with-bom": b"\xef\xbb\xbf" + segment % os.fsencode(other),
        "ffconcat": b"ffconcat version 1.0\nfile '%s'\n" % os.fsencode(other),
        "dash": b"<MPD xmlns='urn:mpeg:dash:schema:mpd:2011' profiles='dash:profile:x'><BaseURL>%s</BaseURL></MPD>"
        % os.fsencode(other),
        "sdp": b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nc=IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n",
        "pls": b"[playlist]\nFile1=%s\n" % os.fsencode(other),
    }


@pytest.mark.parametrize("kind", playlists(Path("/")))
@pytest.mark.parametrize("suffix", ["avi", "mp4"])
def test_playlists_are_refused_and_what_they_name_is_not_opened(tmp_path, kind, suffix):
    other = Path(encode(tmp_path / "other.ts", options={"g": "12"}))
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(playlists(other)[kind])
    opened = OpenedFiles(other)
    refused(path, "but looks like (a playlist|an HTML or XML page|a session description)")
    assert not opened.any()
    if kind in ("m3u8", "ffconcat"):
        demuxer = {"m3u8": "hls", "ffconcat": "concat"}[kind]
        with av.open(str(path), format=demuxer, options={"safe": "0"} if kind == "ffconcat" else {}) as container:
            next(container.decode(video=0))
        assert opened.any(), "the playlist leads nowhere, so the test proves nothing"


@pytest.mark.parametrize("head", [b"\0\0\0\x18ftypisom" + bytes(12), b"RIFF\xff\0\0\0AVI ", b"\x47" + bytes(187)])
def test_no_address_is_connected_to(tmp_path, head):
    connections = []

    class Server(http.server.HTTPServer):
        def process_request(self, request, client_address):
            connections.append(client_address)
            self.shutdown_request(request)

    with Server(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/a.ts"
        path = tmp_path / "a.avi"
        for start in (b"", head, head * 6):
            path.write_bytes(start + b"\n#EXTM3U\n#EXTINF:9,\n%s\n#EXT-X-ENDLIST\n" % address.encode())
            with pytest.raises(BadFileError):
                probe(path)
        with pytest.raises(BadFileError, match="is an address, and only local files are read"):
            probe(address)
        assert connections == []
        with pytest.raises(av.FFmpegError):
            av.open(address)
        assert connections, "the server does not notice, so the test proves nothing"
        server.shutdown()
        thread.join()


def test_python_opens_nothing_but_the_file(tmp_path):
    path = encode(tmp_path / "a.mp4", options={"g": "12"})
    read_frames(path, [0])
    events: list[object] = []
    watching = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event in ("open", "socket.connect", "os.open"):
            events.append(arguments[0])

    sys.addaudithook(hook)
    try:
        read_frames(path, [7])
        probe(path)
    finally:
        watching = False
    assert {os.fspath(event) for event in events if not isinstance(event, int)} <= {os.fspath(path)}
    assert events


def test_files_are_closed(tmp_path):
    path = encode(tmp_path / "a.mp4", options={"g": "12"})
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(path.read_bytes()[:-2000])
    before = len(list(Path("/proc/self/fd").iterdir()))
    read_frames(path, [7])
    probe(path)
    with pytest.raises(BadFileError):
        probe(broken)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
