import json
import os
import shutil
import subprocess

import pytest

from cgnl.measure.record import commit, write_result


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one commit of src/code.py and a result."""
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "A")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "a@example.com")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "code.py").write_text("a = 1\n")
    (tmp_path / "studies" / "results").mkdir(parents=True)
    (tmp_path / "studies" / "results" / "old.json").write_text("{}\n")
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    return tmp_path


def test_the_commit_is_dirty_where_the_code_differs(checkout):
    code = checkout / "src" / "code.py"
    clean = commit(code)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True).stdout
    assert len(clean) == 12
    assert head.startswith(clean)
    (checkout / "studies" / "results" / "new.json").write_text("{}\n")
    (checkout / "README.md").write_text("other\n")
    assert commit(code) == clean
    (checkout / "src" / "more.py").write_text("b = 2\n")
    assert commit(code) == f"{clean}-dirty"
    (checkout / "src" / "more.py").unlink()
    code.write_text("a = 2\n")
    assert commit(code) == f"{clean}-dirty"


def test_the_commit_is_unknown_outside_a_checkout_of_the_code(checkout, tmp_path_factory, monkeypatch):
    outside = tmp_path_factory.mktemp("outside") / "code.py"
    outside.write_text("a = 1\n")
    assert commit(outside) == "unknown"
    # an environment that lies in somebody else's repository
    installed = checkout / "environment" / "code.py"
    installed.parent.mkdir()
    shutil.copy(outside, installed)
    assert commit(installed) == "unknown"
    monkeypatch.setenv("PATH", os.devnull)
    assert commit(checkout / "src" / "code.py") == "unknown"


def test_a_record_says_what_made_it(tmp_path):
    path = tmp_path / "new" / "record.json"
    record = write_result(path, command="cgnl benchmark", seed=3, settings={"a": (1, 2)}, rows=[{"b": 1}], more=4)
    assert json.loads(path.read_text()) == json.loads(json.dumps(record))
    assert {"command", "commit", "date", "versions", "machine", "seed", "settings", "rows", "more"} == set(record)
    assert {"python", "torch", "cgnl"} <= set(record["versions"])
    assert {"processor", "threads", "device"} == set(record["machine"])


def test_a_record_with_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError):
        write_result(tmp_path / "record.json", seed=0, settings={}, rows=[{"seconds": float("nan")}])
    assert not list(tmp_path.iterdir())
