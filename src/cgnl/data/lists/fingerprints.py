"""Which data it was: a digest of every sample of a list, small enough for a checkpoint, and what differs from another.

A fingerprint is a text with an entry for each sample, compressed: digest of the file, label or digest of the objects,
path below the root. Dates do not count, so that a copy is the same data.
"""

import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISREG

from cgnl.data.lists.samples import SampleList
from cgnl.data.lists.text import readable

MAX_READ = 100_000
"""Samples of a list up to which a fingerprint reads their files; of a longer list it takes their sizes alone."""
# Files up to so many bytes are read as a whole, in lists of up to so many samples and in longer ones.
_MAX_WHOLE, _WHOLE, _WHOLE_OF_MANY = 20_000, 1 << 20, 1 << 16
_PIECES, _PIECE = 9, 1 << 12
_THREADS, _SHARE = 8, 256
_NAMED = 3

Entry = tuple[str, str]
"""The digest of a sample's file, and its label or the digest of its objects."""


def fingerprint(samples: SampleList, count: int | None = None) -> bytes:
    """Return the fingerprint of a list, some 20 bytes for each sample.

    Of a file it covers the size and, in lists of up to ``MAX_READ`` samples, the content: all of it up to 1 MB (64 KB
    in lists of more than 20,000 samples), or else nine pieces of 4 KB, from the beginning to the end. A folder of
    frames counts by the names in it and by its first, middle and last file. With ``count``, the files are read as in a
    list of so many samples.
    """
    count = len(samples) if count is None else count
    whole = None if count > MAX_READ else _WHOLE if count <= _MAX_WHOLE else _WHOLE_OF_MANY

    def digests(first: int) -> list[str]:
        return [_digest(sample.path, whole) for sample in samples.samples[first : first + _SHARE]]

    # threads: a disk far away answers each file late
    with ThreadPoolExecutor(_THREADS) as pool:
        files = [digest for share in pool.map(digests, range(0, len(samples), _SHARE)) for digest in share]
    entries = [
        f"{digest} {samples.truth_of(number)} {path_below(samples, sample.path)}"
        for number, (sample, digest) in enumerate(zip(samples.samples, files, strict=True))
    ]
    return zlib.compress("\0".join(entries).encode(errors="surrogateescape"))


def path_below(samples: SampleList, path: Path) -> str:
    """Return the path of a sample below the root of its list; a path elsewhere stays as it is."""
    text, root = os.fspath(path), os.fspath(samples.root)
    if text.startswith(root + os.sep):  # pathlib takes ten times as long
        return text[len(root) + 1 :]
    resolved = samples.root.resolve()
    return str(path.relative_to(resolved) if path.is_relative_to(resolved) else path)


def _digest(path: Path, whole: int | None) -> str:
    try:
        state = path.stat()
        if not S_ISREG(state.st_mode):
            return _digest_of_folder(path, whole)
        digest = hashlib.blake2b(str(state.st_size).encode(), digest_size=8)
        if whole is not None:
            with path.open("rb", buffering=0) as file:
                for place, count in _parts(state.st_size, whole):
                    file.seek(place)
                    digest.update(file.read(count))
    except OSError as error:
        return f"unreadable-{error.errno}"
    return digest.hexdigest()


def _parts(size: int, whole: int) -> list[tuple[int, int]]:
    """Return places and lengths (bytes) of the parts of a file that are read."""
    if size <= whole:
        return [(0, size)]
    return [((size - _PIECE) * number // (_PIECES - 1), _PIECE) for number in range(_PIECES)]


def _digest_of_folder(path: Path, whole: int | None) -> str:
    names = sorted(entry.name for entry in os.scandir(path))
    digest = hashlib.blake2b("\0".join(names).encode(errors="surrogateescape"), digest_size=8)
    for name in {names[place]: None for place in (0, len(names) // 2, -1)} if names else ():
        if not (path / name).is_dir():
            digest.update(_digest(path / name, whole).encode())
    return digest.hexdigest()


def changes(before: bytes, now: bytes, names: Mapping[str, str]) -> list[str]:
    """Say in a few words each what differs between the fingerprints of two lists, with counts and the first files.

    An empty one is that of no list. ``names`` has the class of each label; it is empty where samples have objects.
    """
    if before == now:
        return []
    old, new = (dict(_entries(each)) for each in (before, now))
    gone = {path: entry for path, entry in old.items() if path not in new}
    added = {path: entry for path, entry in new.items() if path not in old}
    both = [(path, entry, new[path]) for path, entry in old.items() if path in new]
    places: dict[str, list[str]] = {}
    for path, (digest, _) in reversed(added.items()):
        places.setdefault(digest, []).append(path)
    renamed, relabelled = [], [(path, path, a[1], b[1]) for path, a, b in both if a[1] != b[1]]
    for path, (digest, truth) in list(gone.items()):
        if places.get(digest):
            place = places[digest].pop()
            (_, truth_there), _ = added.pop(place), gone.pop(path)
            if truth == truth_there:
                renamed.append(f"{path}, now {place}")
            else:
                relabelled.append((path, place, truth, truth_there))
    kinds = {
        "with other contents": [path for path, a, b in both if a[0] != b[0]],
        "moved to another class" if names else "with other objects": [
            f"{path}{f', now {place}' * (path != place)}"
            + (f", from {names[truth]} to {names[truth_there]}" if truth in names and truth_there in names else "")
            for path, place, truth, truth_there in relabelled
        ],
        "renamed": renamed,
        "removed": list(gone),
        "added": list(added),
    }
    found = [
        f"{len(some)} {words} ({readable('; '.join(some[:_NAMED]))}{'; ...' * (len(some) > _NAMED)})"
        for words, some in kinds.items()
        if some
    ]
    return found or ["their order"]


def shared(before: bytes, samples: SampleList) -> list[str]:
    """Return the paths of samples that are in the list of a fingerprint too, with the same content."""
    old = dict(_entries(before))
    now = _entries(fingerprint(samples, len(old)))
    return [path for path, (digest, _) in now if path in old and old[path][0] == digest]


def _entries(content: bytes) -> Iterator[tuple[str, Entry]]:
    text = zlib.decompress(content).decode(errors="surrogateescape") if content else ""
    # a list may name a file several times
    seen: dict[str, int] = {}
    for entry in text.split("\0") if text else ():
        digest, truth, path = entry.split(" ", 2)
        seen[path] = seen.get(path, 0) + 1
        yield path if seen[path] == 1 else f"{path} ({seen[path]})", (digest, truth)
