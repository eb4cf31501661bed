"""``cgnl embed``: features of images and videos, and the nearest among them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from cgnl.cli.options import Checkpoint, Files, OptionalFile
from cgnl.files import whole_file
from cgnl.settings.checks import within


def embed(
    checkpoint: Positional[Checkpoint],
    files: Positional[Files] = (),
    out: OptionalFile = None,
    search: OptionalFile = None,
    among: Annotated[OptionalFile, tyro.conf.arg(name="in")] = None,
    top: int = 10,
) -> None:
    """Write the features of images or videos, the input of the classifier, or find the files most like one.

    Args:
        checkpoint: A checkpoint, or a run folder (its best.ckpt, or else its last.ckpt).
        files: Image files; for a video classifier, video files or folders of frames. Of another folder, every image
            or video in it.
        out: File to write, .npz (features [N, D], paths [N]) or .parquet.
        search: File to find the most similar ones of, by the cosine of their features.
        among: Features to search in, written by this command with the same network.
        top: Number of files to find.
    """
    from cgnl.tasks import load_trained, task_of

    within("top", top, 1)
    if (search is None) != (among is None):
        raise ValueError("--search and --in belong together: a file, and the features to find similar files in")
    if search is None and (not files or out is None):
        raise ValueError("give files, and with --out a .npz or .parquet file for their features")
    if out is not None and out.suffix not in (".npz", ".parquet"):
        raise ValueError(f"out ({out}) must end in .npz or .parquet")
    trained = load_trained(checkpoint)
    task: Any = task_of(trained.recipe)
    if search is not None:
        assert among is not None
        _search(task, trained, search, among, top)
    else:
        assert out is not None
        _write(task, trained, [file for path in files for file in task.files_in(path)], out)


def _write(task: Any, trained: Any, files: Sequence[Path], out: Path) -> None:
    """Write the features of all files that can be read; a stop writes those that there are."""
    import numpy as np
    from rich.progress import track

    from cgnl.data.decoding import DataError
    from cgnl.data.lists import readable

    rows, paths, failed, stopped = [], [], 0, False
    try:
        for path in track(files, "embedding", disable=not sys.stderr.isatty(), transient=True):
            try:
                rows.append(task.features(trained, path).numpy())
                paths.append(readable(str(path)))
            except DataError as error:
                failed += 1
                print(f"cgnl: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        stopped = True
    if rows:
        _WRITERS[out.suffix](out, np.stack(rows), paths, trained.digest())
        words = f"{len(rows)} of {len(files)} files, {len(rows[0])} features each"
        print(f"written: {out} ({words}{', stopped' if stopped else ''})")
    if stopped:
        raise KeyboardInterrupt
    if failed:
        sys.exit(2)


def _write_npz(out: Path, features: Any, paths: Sequence[str], network: str) -> None:
    import numpy as np

    with whole_file(out, "wb") as file:
        np.savez(file, features=features, paths=np.array(paths), network=np.array(network))


def _write_parquet(out: Path, features: Any, paths: Sequence[str], network: str) -> None:
    pyarrow, parquet = _arrow()
    columns = {"path": pyarrow.array(paths), "features": pyarrow.array(list(features))}
    with whole_file(out, "wb") as file:
        parquet.write_table(pyarrow.table(columns).replace_schema_metadata({"cgnl.network": network}), file)


_WRITERS = {".npz": _write_npz, ".parquet": _write_parquet}


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(".parquet files need pyarrow: pip install 'cgnl[parquet]'") from None
    return pyarrow, pyarrow.parquet


def _read(file: Path) -> tuple[Any, list[str], str]:
    """Return the features [N, D], the paths, and the digest of the network; DataError for another file."""
    import numpy as np

    from cgnl.data.decoding import DataError, open_regular

    wrong = DataError(f"{file} holds no features that cgnl embed has written")
    with open_regular(file) as opened:
        try:
            if file.suffix == ".parquet":
                _, parquet = _arrow()
                table = parquet.read_table(opened)
                network = (table.schema.metadata or {})[b"cgnl.network"].decode()
                features = np.stack(table["features"].to_numpy()).astype(np.float32)
                return features, table["path"].to_pylist(), network
            with np.load(opened, allow_pickle=False) as arrays:
                return arrays["features"], arrays["paths"].tolist(), str(arrays["network"])
        except ImportError:
            raise
        except Exception:  # whatever a damaged archive makes of its readers
            raise wrong from None


def _search(task: Any, trained: Any, search: Path, among: Path, top: int) -> None:
    import numpy as np

    features, paths, network = _read(among)
    if network != trained.digest():
        raise ValueError(f"in ({among}) holds the features of another network: write them with this checkpoint")
    wanted = task.features(trained, search).numpy()
    sizes = np.linalg.norm(features, axis=1) * np.linalg.norm(wanted)
    cosines = features @ wanted / np.where(sizes > 0, sizes, 1)
    for number in np.argsort(-cosines, kind="stable")[:top]:
        print(f"{cosines[number]:7.4f}  {paths[number]}")
