"""Store results as they come, so that a killed comparison resumes."""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

SCHEMA = "fastdiff_lab.Store"
VERSION = 2


@dataclass
class Result:
    """What one method gave for one prompt and seed: final latent (channels, height, width), image, counts."""

    latent: Tensor
    image: Image.Image
    counts: dict[str, int]


class Store:
    """Results by key, in memory or in a file.

    >>> with Store("runs/compare.sqlite") as store:  # doctest: +SKIP
    ...     store.add({key: result})
    ...     store.keys()

    A file from elsewhere can do no harm: tensors are safetensors, images PNG, numbers JSON.
    Raises ValueError for a file that is no store of ours.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path, self.name = path, "the store in memory" if path is None else str(path)
        try:
            if path is not None:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(":memory:" if path is None else path)
        except (sqlite3.OperationalError, OSError) as error:
            raise OSError(f"cannot open {self.name} ({error}); accepted: the path of a file, new or written by compare") from None
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self.connection.close()
            raise ValueError(
                f"{self.name} is no {SCHEMA} file ({error}); accepted: a new path, or a file that compare wrote"
            ) from None
        except ValueError:
            self.connection.close()
            raise

    def _open(self) -> None:
        tables = {name for (name,) in self.connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            with self.connection:
                self.connection.execute("CREATE TABLE about (schema TEXT, version INTEGER)")
                self.connection.execute("INSERT INTO about VALUES (?, ?)", (SCHEMA, VERSION))
                self.connection.execute("CREATE TABLE results (key TEXT PRIMARY KEY, counts TEXT, latent BLOB, image BLOB)")
        elif "about" not in tables or self.connection.execute("SELECT * FROM about").fetchall() != [(SCHEMA, VERSION)]:
            raise ValueError(f"{self.name} is no {SCHEMA} of version {VERSION}; accepted: a new path, which compare draws anew")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def keys(self) -> set[str]:
        """The keys of all results."""
        return {key for (key,) in self.connection.execute("SELECT key FROM results")}

    def add(self, results: dict[str, Result]) -> None:
        """Write results, all or none. Raises ValueError for a key that is there already."""
        rows = [(key, *_as_row(result)) for key, result in results.items()]
        try:
            with self.connection:
                self.connection.executemany("INSERT INTO results VALUES (?, ?, ?, ?)", rows)
        except sqlite3.IntegrityError:
            raise ValueError(
                f"{self.name} holds one of these results already; let one comparison at a time write into a store"
            ) from None

    def read(self, keys: Iterable[str]) -> list[Result]:
        """Read the results of some keys, in their order. Raises KeyError for a missing one, ValueError for a damaged one."""
        return [self._read(key) for key in keys]

    def _read(self, key: str) -> Result:
        with closing(self.connection.execute("SELECT counts, latent, image FROM results WHERE key = ?", (key,))) as found:
            row = found.fetchone()
        if row is None:
            raise KeyError(f"{self.name} has no result {key}; its keys are those of store.keys()")
        try:
            image = Image.open(io.BytesIO(row[2]), formats=["PNG"])
            image.load()
            return Result(safetensors.torch.load(row[1])["latent"], image, {str(n): int(c) for n, c in json.loads(row[0]).items()})
        except (safetensors.SafetensorError, json.JSONDecodeError, UnidentifiedImageError, KeyError, TypeError, OSError) as error:
            raise ValueError(f"{self.name}: result {key} is damaged ({error}); remove the file, or give another") from None


def _as_row(result: Result) -> tuple[str, bytes, bytes]:
    return json.dumps(result.counts), safetensors.torch.save({"latent": result.latent.contiguous()}), _png(result.image)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return buffer.getvalue()
