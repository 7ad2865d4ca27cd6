"""Write the features of many videos into one HDF5 or Parquet file."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from slowfast.utils.io import atomic_path

LIBRARIES = {"hdf5": "h5py", "parquet": "pyarrow"}
FILES = {"hdf5": "features.h5", "parquet": "features.parquet"}


def check_library(kind: str) -> None:
    """Raise ValueError if the library for a kind of file is not installed."""
    name = LIBRARIES.get(kind)
    if name is not None and importlib.util.find_spec(name) is None:
        raise ValueError(f"--format {kind} needs the package {name}, which is not installed: pip install {name}")


def write_store(kind: str, folder: Path, settings: dict[str, Any]) -> None:
    """Write the features of the videos in `settings` into one file, which appears complete or not at all.

    HDF5 has a data set (N, C) per video, named like it, with the description as attributes; beside a folder of the same
    name, it is named with the suffix of its file, or `.frames`. Parquet has a row per window with the columns video,
    window and features.
    """
    with atomic_path(folder / FILES[kind]) as part:  # several tasks may write at once
        (_write_hdf5 if kind == "hdf5" else _write_parquet)(part, folder, settings)


def _write_hdf5(path: Path, folder: Path, settings: dict[str, Any]) -> None:
    h5py: Any = importlib.import_module("h5py")
    with h5py.File(path, "w") as file:
        file.attrs.update({key: value for key, value in settings.items() if key != "videos"})
        folders = {str(above) for name in settings["videos"] for above in PurePosixPath(name).parents}
        for name, about in settings["videos"].items():
            suffix = Path(about["path"]).suffix or ".frames"
            unique = name + suffix * (name in folders)  # a group cannot be a data set too
            file.create_dataset(unique, data=np.load(folder / f"{name}.npy")).attrs.update(about)


def _write_parquet(path: Path, folder: Path, settings: dict[str, Any]) -> None:
    arrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    schema = arrow.schema(
        [("video", arrow.string()), ("window", arrow.int64()), ("features", arrow.list_(arrow.float32()))],
        {key: str(value) for key, value in settings.items() if key != "videos"},
    )
    with parquet.ParquetWriter(path, schema) as writer:
        for name in settings["videos"]:
            values = np.atleast_2d(np.load(folder / f"{name}.npy"))
            columns = [[name] * len(values), [*range(len(values))], [*values]]
            writer.write_table(arrow.table(columns, schema=schema))
