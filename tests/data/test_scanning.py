"""Files that crash or hang the process that reads them."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from cgnl.data.decoding import BadFileError
from cgnl.data.scanning import scan, scan_with_bar


def act(path: Path) -> int:
    """Do what the file's name says; else return the length of the name."""
    if "segfault" in path.name:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "exit" in path.name:
        os._exit(3)
    if "hang" in path.name:
        time.sleep(600)
    if "bad" in path.name:
        raise BadFileError(path, "is bad")
    if "folder" in path.name:
        raise BadFileError(path / "1.jpg", "is bad")
    return len(path.name)


def broken(path: Path) -> None:
    raise AssertionError


@pytest.fixture
def of_other_tests() -> set[multiprocessing.process.BaseProcess]:
    """Processes that earlier tests have left to be collected, readers of data loaders for example."""
    return set(multiprocessing.active_children())


@pytest.mark.parametrize("workers", [1, 2])
def test_every_file_is_accounted_for(workers, of_other_tests):
    names = ["a", "segfault", "bb", "hang", "bad", "exit", "ccc", "dddd", "segfault 2", "eeeee"]
    results = {
        result.path.name: result for result in scan(act, [Path(name) for name in names], workers=workers, timeout=3.0)
    }
    assert sorted(results) == sorted(names)
    values = {name: result.value for name, result in results.items() if result.error is None}
    assert values == {"a": 1, "bb": 2, "ccc": 3, "dddd": 4, "eeeee": 5}
    errors = {name: result.error for name, result in results.items() if result.error is not None}
    assert errors == {
        "segfault": "ends the process that decodes it (SIGSEGV)",
        "segfault 2": "ends the process that decodes it (SIGSEGV)",
        "exit": "ends the process that decodes it (exit code 3)",
        "hang": "takes longer than 3 seconds to decode",
        "bad": "is bad",
    }
    assert {name for name, result in results.items() if not result.answered} == set(errors) - {"bad"}
    assert not set(multiprocessing.active_children()) - of_other_tests


def test_no_process_is_left_when_the_scan_is_given_up(of_other_tests):
    results = scan(act, [Path(str(number)) for number in range(50)], workers=2)
    next(results)
    results.close()
    assert not set(multiprocessing.active_children()) - of_other_tests


def test_an_error_of_a_file_in_a_folder_names_the_file():
    (result,) = scan(act, [Path("folder")], workers=1)
    assert result.path == Path("folder")
    assert result.error == "holds a bad file: folder/1.jpg is bad"
    assert result.answered


def test_a_bar_counts_what_is_done_and_what_is_bad(capfd):
    paths = [Path("a"), Path("bad")]
    assert {result.path for result in scan_with_bar(act, paths, "looking", workers=1)} == set(paths)
    shown = capfd.readouterr().err
    assert "looking, 1 bad" in shown
    assert "2/2" in shown
    assert len(list(scan_with_bar(act, paths, "looking", workers=1, progress=False))) == 2
    assert capfd.readouterr().err == ""


def test_no_files_start_no_process():
    assert list(scan(act, [], workers=2)) == []


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"workers \(0\) must be at least 1"):
        next(scan(act, [Path("a")], workers=0))
    with pytest.raises(ValueError, match=r"timeout \(0\) must be above 0"):
        next(scan(act, [Path("a")], timeout=0))


def test_processes_that_do_not_start_are_an_error(capfd):
    class Local:
        def __reduce__(self):
            return (broken, (None,))

        def __call__(self, path: Path) -> None:
            """Never reached: the process fails while it unpickles this object."""

    with pytest.raises(RuntimeError, match=r"ended before it got one \(exit code 1\)"):
        list(scan(Local(), [Path("a")], workers=1))
    assert "AssertionError" in capfd.readouterr().err
