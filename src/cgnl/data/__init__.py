"""Data sets as people have them on disk, transforms, and drawn sets."""

from importlib.util import find_spec

if _missing := [name for name in ("numpy", "PIL", "rich", "torchvision") if find_spec(name) is None]:
    raise ImportError(f"cgnl.data needs {', '.join(_missing)}: pip install 'cgnl[train]'")
