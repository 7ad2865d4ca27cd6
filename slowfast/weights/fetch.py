"""Find weight files: local paths, names of released weights, web addresses, and what iopath handles."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from email.utils import formatdate
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, urlopen

from iopath.common.file_io import PathHandler, PathManager, file_lock
from tqdm import tqdm

from slowfast.utils.io import sha256, write_text

logger = logging.getLogger(__name__)

MANIFEST = Path(__file__).with_name("manifest.json")
# Downloaded weights.
PRETRAINED = Path(__file__).parents[2] / "pretrained"
GOOGLE_DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"


def download(url: str, path: Path, checksum: str = "") -> None:
    """Download `url` to `path`, which appears whole or not at all; an existing file is left alone.

    What arrived before an interruption stays beside it as `.part`, and the next call goes on from there. Several
    processes may ask for the same file: one of them downloads.

    Args:
        checksum: the SHA-256 of the file or its first digits; "" if unknown.

    Raises:
        ValueError: the address gives no file, the connection broke and could not be resumed, or the checksum differs.
    """
    part = path.with_name(path.name + ".part")
    cure = f"or download it in another way and save it as {path}"
    with file_lock(str(path)):
        if path.is_file():
            return
        logger.info("downloading %s to %s", url, path)
        arrived, complete = -1, False
        while not complete:
            reason = "the connection broke"
            try:
                complete = _download_rest(url, part)
            except HTTPError as error:
                raise ValueError(f"{url} cannot be downloaded (HTTP {error}); check the address, {cure}") from error
            except (OSError, HTTPException) as error:
                reason = str(error) or type(error).__name__
            before, arrived = arrived, part.stat().st_size if part.is_file() else 0
            if not complete and arrived <= before:
                raise ValueError(
                    f"{url} cannot be downloaded ({reason}); {arrived} bytes are there: run again to go on, {cure}"
                )
        digest = sha256(part)
        if not digest.startswith(checksum.lower()):
            part.unlink()
            raise ValueError(
                f"{url} came with SHA-256 {digest} instead of {checksum}...: it is damaged or was replaced, and was "
                f"removed. Run again; if that does not help, check it, {cure}"
            )
        os.replace(part, path)


def _download_rest(url: str, part: Path) -> bool:
    """Append to `part` what it lacks of `url`; False if the connection ended early."""
    offset = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "slowfast"}
    if offset:
        unmodified = formatdate(part.stat().st_mtime, usegmt=True)
        headers |= {"Range": f"bytes={offset}-", "If-Unmodified-Since": unmodified}
    try:
        response = urlopen(Request(url, headers=headers), timeout=60)
    except HTTPError as error:
        if offset == 0 or error.code not in (412, 416):
            raise
        if error.headers.get("Content-Range") == f"bytes */{offset}":  # nothing is left to send
            return True
        part.unlink()  # the file at the address is another one by now
        return _download_rest(url, part)
    with response:
        resumed = offset > 0 and response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            part.unlink()  # another part than the one that is lacking
            return _download_rest(url, part)
        if response.headers.get_content_type() == "text/html":
            raise ValueError(f"{url} is a web page, not a file; open it in a browser")
        length = response.headers.get("Content-Length")
        start = offset if resumed else 0
        total = start + int(length) if length else None
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None)
        with bar, open(part, "ab" if resumed else "wb") as file:
            while chunk := response.read(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
            os.fsync(file.fileno())
            return total is None or file.tell() == total


def _manifest(part: str) -> dict[str, Any]:
    return json.loads(MANIFEST.read_text(encoding="utf-8")).get(part, {})


def released_weights() -> dict[str, dict[str, Any]]:
    """Names of released weights -> where they are (`manifest.json` beside this module); aliases are names too."""
    named = {name: {"name": name, **entry} for name, entry in _manifest("weights").items()}
    return {alias: entry for entry in named.values() for alias in (entry["name"], *entry.get("aliases", ()))}


def _fetch_released(entry: dict[str, Any]) -> Path:
    """The file of a row of the manifest, downloaded unless it is there under its name or one of its aliases."""
    suffix = Path(entry.get("url", ".pth")).suffix or ".pth"
    names = [Path(name).name.removesuffix(suffix) for name in (entry["name"], *entry.get("aliases", ()))]
    paths = [PRETRAINED / f"{name}{suffix}" for name in names]
    for path in paths:
        if path.is_file():
            _check_once(path, entry)
            return path
    if "url" in entry:
        download(entry["url"], paths[0], entry.get("sha256", ""))
        return paths[0]
    try:
        download(GOOGLE_DRIVE.format(entry["google_drive"]), paths[0])
    except ValueError as error:
        raise ValueError(
            f"{entry['name']} is on Google Drive, which did not give it: open "
            f"https://drive.google.com/file/d/{entry['google_drive']}/view in a browser, download the file and save it "
            f"as {paths[0]}\n  ({error})"
        ) from error
    return paths[0]


def _check_once(path: Path, entry: dict[str, Any]) -> None:
    """Compare a file with the checksum of its row; what it has stays beside it, as NAME.sha256, until it changes.

    Raises:
        ValueError: it has another.
    """
    checksum = entry.get("sha256", "").lower()
    if not checksum:
        return
    record, state = path.with_name(path.name + ".sha256"), path.stat()
    known = record.read_text(encoding="utf-8").split() if record.is_file() else []
    version = [str(state.st_size), str(state.st_mtime_ns)]
    digest = known[0] if known[1:] == version else sha256(path)
    if known[1:] != version:
        with contextlib.suppress(OSError):  # a folder that is only read: the next process computes it again
            write_text(record, " ".join([digest, *version]) + "\n")
    if not digest.startswith(checksum):
        cure = "and it is downloaded again" if "url" in entry else "and download it again"
        raise ValueError(
            f"{path} has SHA-256 {digest} instead of {checksum}... of {entry['name']}: it is damaged or another file; "
            f"remove it, {cure}"
        )


class _Downloads(PathHandler):
    """Web addresses: files are downloaded to `PRETRAINED` once."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["http://", "https://"]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        for entry in released_weights().values():
            if entry.get("url") == path:
                return str(_fetch_released(entry))
        parts = urlsplit(path)
        # the address is the path below PRETRAINED: equal file names of two addresses stay apart
        folders = [unquote(part) for part in parts.path.split("/")]
        names = [quote(part, safe=" +@") for part in (parts.netloc, *folders) if part not in ("", ".", "..")]
        if parts.query or len(names[-1]) > 200:  # a file name has at most 255 bytes
            name, digest = Path(names[-1]), hashlib.sha256(f"{folders[-1]}?{parts.query}".encode()).hexdigest()
            names[-1] = f"{name.stem[:100]}-{digest[:16]}{name.suffix[:20]}"
        local = PRETRAINED.joinpath(*names)
        download(path, local)
        return str(local)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        if "r" not in mode:
            raise ValueError(f"{path} is a web address, which can only be read")
        return open(self._get_local_path(path), mode, buffering)


path_manager = PathManager()
path_manager.register_handler(_Downloads())


def fetch(address: str | os.PathLike) -> str:
    """The local path of a local file, a name in `manifest.json`, a web address, or what iopath handles.

    Whatever is not local is downloaded once. A local path is not looked at: it may not exist.

    Raises:
        ValueError: the address cannot be fetched.
    """
    address = str(address)
    if not os.path.isfile(address) and (entry := released_weights().get(address)):
        return str(_fetch_released(entry))
    try:
        return path_manager.get_local_path(address)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{address!r} cannot be fetched ({error}); check the address") from error


def fetch_checkpoint(address: str | os.PathLike) -> str:
    """The local path of what `fetch` knows, which is there.

    Raises:
        ValueError: it is not.
    """
    local = fetch(address)
    if not os.path.isfile(local):
        if reason := _manifest("never_released").get(str(address)):
            raise ValueError(f"checkpoint {str(address)!r} does not exist: {reason}")
        raise ValueError(
            f"checkpoint {str(address)!r} does not exist, nor are there released weights of that name; check the path "
            "(TRAIN/TEST.CHECKPOINT_FILE_PATH)"
        )
    return local
