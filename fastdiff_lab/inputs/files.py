"""Read and write small files, whole or not at all, without trusting what comes from elsewhere.

- `write_whole(path, write)`, `write_text(path, text)`: a file appears whole or not at all
- `writable_folder(folder)`: make a folder, or say why not
- `check_writable(path)`, `check_readable(path, accepted)`: refuse a path before anything is computed
- `read_lines(path, accepted)`, `read_prompts(path)`: the lines of a text file
- `read_json(text_or_path, place, schema, version)`: a JSON document of ours
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

MAX_JSON_BYTES = 8 * 2**20


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, then move it to `path`, so that a killed run leaves no half file.

    >>> write_whole(Path("numbers.json"), lambda place: place.write_text("[1]"))  # doctest: +SKIP
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        place.touch()
        mode = place.stat().st_mode  # the user's umask; safetensors would let nobody else read the file
        write(place)
        place.chmod(mode)
        place.replace(path)
    finally:
        place.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_whole(path, lambda place: place.write_text(text, encoding="utf-8"))


def writable_folder(folder: Path) -> Path:
    """Make a folder if need be, and return its full path. Raises OSError that says why it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write to the output folder {folder}: {error.strerror}; give another with --output") from None
    return folder.resolve()


def check_writable(path: Path) -> None:
    """Raise OSError for a path that no file can be written to."""
    folder = path.absolute().parent
    trouble = "it is a folder" if path.is_dir() else "" if folder.is_dir() else f"the folder {folder} does not exist"
    if not trouble:
        try:
            with tempfile.TemporaryFile(dir=folder):
                return
        except OSError as error:
            trouble = f"nothing can be written to the folder {folder} ({error.strerror})"
    raise OSError(f"cannot write {path}: {trouble}; accepted: a file in a folder that is there and can be written")


def check_readable(path: Path, accepted: str) -> None:
    """Raise FileNotFoundError unless there is a file; `accepted` says what it should be."""
    if path.is_dir() or not path.exists():
        raise FileNotFoundError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; accepted: {accepted}")


def read_lines(path: Path, accepted: str) -> list[str]:
    """Read the lines of a text file that are not empty, without blanks around them.

    >>> read_lines(Path("prompts.txt"), "a text file with a prompt per line")  # doctest: +SKIP

    A byte-order mark is dropped. Raises ValueError for a file that is not in UTF-8, and as `check_readable` does.
    """
    check_readable(path, accepted)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16 without a mark is valid UTF-8 with zeros
        raise ValueError(
            f"{path} is not written in UTF-8; accepted: {accepted}, saved as UTF-8 (with or without a byte-order mark)"
        )
    return [line.strip(" \t") for line in text.replace("\r\n", "\n").split("\n") if line.strip()]


def read_prompts(path: Path) -> list[str]:
    """Read a prompt per line. Raises ValueError for a file without one, and as `read_lines` does."""
    accepted = "a text file with a prompt per line"
    prompts = read_lines(path, accepted)
    if not prompts:
        raise ValueError(f"{path} has no prompt; accepted: {accepted}")
    return prompts


def read_json(source: str | Path, place: str, schema: str, version: int) -> dict:
    """Read the fields of a JSON document of ours, without its schema and version.

    `source` is the text itself, or the path of a file; `place` names it in errors. Raises FileNotFoundError without a file.
    Raises ValueError if it is too large, no JSON, of another schema or of a newer version.
    """
    if isinstance(source, Path):
        check_readable(source, f"a {schema} file")
    size = source.stat().st_size if isinstance(source, Path) else len(source)
    if size > MAX_JSON_BYTES:
        raise ValueError(f"{place} has {size} bytes; accepted: at most {MAX_JSON_BYTES}")
    try:
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is no JSON ({error}); accepted: a {schema} file") from None
    if not isinstance(document, dict) or document.get("schema") != schema:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise ValueError(f"{place} is no {schema} (its schema is {str(found)[:80]!r}); accepted: a {schema} file")
    if document.get("version") != version:
        raise ValueError(
            f"{place} has version {str(document.get('version'))[:80]!r} of {schema}; accepted: {version}, as a file made anew has"
        )
    return {name: value for name, value in document.items() if name not in ("schema", "version")}
