"""Memory and disk space that really run out, as sentences."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cgnl.data.decoding import DataError
from cgnl.data.shortage import lacks_memory, reporting_full_disk, reporting_lack_of_memory
from cgnl.settings.image import DataConfig
from cgnl.settings.video import VideoDataConfig

TOO_MUCH = {
    "PyTorch": lambda: torch.empty(1 << 50),
    "NumPy": lambda: np.empty(1 << 50),
    "Python": lambda: bytearray(1 << 60),
}


@pytest.mark.parametrize("library", TOO_MUCH)
def test_each_librarys_error_names_what_to_lower(library):
    said = r"memory ran out with data\.size 448, data\.batch_size 256, data\.workers 2: lower one of them"
    with pytest.raises(DataError, match=said), reporting_lack_of_memory(DataConfig()):
        TOO_MUCH[library]()
    with pytest.raises(DataError, match=r"data\.num_frames 32"), reporting_lack_of_memory(VideoDataConfig()):
        TOO_MUCH[library]()


def test_other_errors_stay_as_they_are():
    for error in (RuntimeError("shapes differ"), OSError(errno.EIO, "I/O error"), ValueError("no")):
        assert not lacks_memory(error)
        with pytest.raises(type(error)) as caught, reporting_lack_of_memory(DataConfig()), reporting_full_disk(Path()):
            raise error
        assert caught.value is error


def write_to_a_full_disk():
    with open("/dev/full", "wb", buffering=0) as file:  # noqa: PTH123
        file.write(b"x")


def test_a_full_disk_ends_in_a_sentence(tmp_path):
    said = r"the disk of .* is full \(No space left on device\)"
    with pytest.raises(DataError, match=said), reporting_full_disk(tmp_path):
        write_to_a_full_disk()


def test_a_run_is_not_resumed_on_a_full_disk(tmp_path):
    """On a small disk in memory, which a user may mount in a namespace of its own."""
    script = f"""
import os
from pathlib import Path
from cgnl.data.shortage import reporting_full_disk
run = Path({str(tmp_path)!r})
(run / "last.ckpt").write_bytes(bytes(600_000))
try:
    with reporting_full_disk(run):
        print("resumed")
except ValueError as error:
    print(error)
"""
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec {sys.executable} -"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False, env=dict(os.environ))
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
    assert done.stdout.startswith(f"the disk of {tmp_path} has 0.4 MB free, but a checkpoint takes 0.6 MB"), done
