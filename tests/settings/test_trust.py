"""Code of other packages runs only where the user names it."""

import sys

import pytest

from cgnl.settings.trust import import_named, trusting


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that says when it is imported."""
    folder = tmp_path / "foreignpackage"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "blocks.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass MyBlock: pass\n")
    (folder / "broken.py").write_text("import nosuchlibrary\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.startswith("foreignpackage")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.mark.parametrize("trust", [(), ("foreign",), ("foreignpackage.other",), ("foreignpackage.blocks.MyBloc",)])
def test_what_is_not_trusted_does_not_run(package, trust):
    with pytest.raises(ValueError, match=r"foreignpackage.blocks.MyBlock is code from another package.*--trust for"):
        import_named("foreignpackage.blocks.MyBlock", trust)
    assert not (package / "ran").exists()


@pytest.mark.parametrize("trust", ["foreignpackage", "foreignpackage.blocks", "foreignpackage.blocks.MyBlock"])
def test_what_is_trusted_is_imported(package, trust):
    assert import_named("foreignpackage.blocks.MyBlock", (trust,)).__name__ == "MyBlock"
    assert (package / "ran").exists()


def test_trust_ends_with_its_body(package):
    with trusting("foreignpackage"):
        import_named("foreignpackage.blocks.MyBlock")
    with pytest.raises(ValueError, match="another package"):
        import_named("foreignpackage.blocks.MyBlock")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("foreignpackage.nothere.MyBlock", "there is no module foreignpackage.nothere"),
        ("foreignpackage.blocks.Other", "the module foreignpackage.blocks has no Other"),
        ("foreignpackage", "must be a module and a name in it"),
    ],
)
def test_names_that_lead_nowhere(package, name, message):
    with pytest.raises(ValueError, match=message):
        import_named(name, ("foreignpackage",))


def test_an_error_inside_the_package_keeps_its_own_words(package):
    with pytest.raises(ModuleNotFoundError, match="nosuchlibrary"):
        import_named("foreignpackage.broken.MyBlock", ("foreignpackage",))
