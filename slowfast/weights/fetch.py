"""Find weight files: local paths, names of released weights, web addresses, and paths of iopath."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import os
import re
import time
from difflib import get_close_matches
from email.utils import formatdate
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from iopath.common.file_io import PathHandler, PathManager, file_lock
from tqdm import tqdm

from slowfast.utils.io import sha256, write_text

logger = logging.getLogger(__name__)

MANIFEST = Path(__file__).with_name("manifest.json")
# Files that a user put into a checkout; downloads go to `home()`.
PRETRAINED = Path(__file__).parents[2] / "pretrained"
GOOGLE_DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
# A download with fewer than STALL_BYTES in STALL_SECONDS fails.
STALL_BYTES, STALL_SECONDS = 1 << 16, 60


def home() -> Path:
    """Return the folder of downloaded weights: SLOWFAST_HOME, by default `slowfast` in the user's cache folder."""
    if folder := os.environ.get("SLOWFAST_HOME"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slowfast"


def without_secrets(url: str) -> str:
    """Return a web address without password and query, which may contain tokens."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{'?...' if parts.query else ''}"


def download(url: str, path: Path, checksum: str = "") -> None:
    """Download `url` to `path`, which appears whole or not at all; keep an existing file.

    After an interruption the received bytes stay beside it as `.part`, and the next call continues from there. If
    several processes request the same file, one of them downloads it.

    Args:
        checksum: the SHA-256 of the file or its first digits; "" if unknown.

    Raises:
        ValueError: the address has no file, the connection broke and could not be resumed, or the checksum differs.
    """
    part = path.with_name(path.name + ".part")
    shown = without_secrets(url)
    cure = f"or download it in another way and save it as {path}"
    with file_lock(str(path)):
        if path.is_file():
            return
        logger.info("downloading %s to %s", shown, path)
        arrived, complete = -1, False
        while not complete:
            reason = "the connection broke"
            try:
                complete = _download_rest(url, part)
            except HTTPError as error:
                raise ValueError(f"{shown} cannot be downloaded (HTTP {error}); check the address, {cure}") from None
            except (OSError, HTTPException) as error:
                reason = str(error) or type(error).__name__
            before, arrived = arrived, part.stat().st_size if part.is_file() else 0
            if not complete and arrived - before < STALL_BYTES:
                raise ValueError(
                    f"{shown} cannot be downloaded ({reason}); {arrived} bytes have arrived: repeat to continue, {cure}"
                )
        digest = sha256(part)
        if not digest.startswith(checksum.lower()):
            part.unlink()
            raise ValueError(
                f"{shown} has SHA-256 {digest} instead of {checksum}...: it is damaged or was replaced, and was "
                f"removed. Run again; if that does not help, check it, {cure}"
            )
        os.replace(part, path)


class _WebOnly(HTTPRedirectHandler):
    """Follow redirections to web addresses only."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise ValueError(
                f"{without_secrets(req.full_url)} leads to {without_secrets(newurl)}, which is not a web address"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _request(url: str, headers: dict[str, str]) -> Request:
    """Return a request; a user name and password in the address become a header that redirections drop."""
    parts = urlsplit(url)
    secret, _, place = parts.netloc.rpartition("@")
    try:
        valid = bool(parts.hostname) and (parts.port or True)
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"{without_secrets(url)} is not a web address: write https://HOST/FILE")
    request = Request(parts._replace(netloc=place).geturl(), headers={"User-Agent": "slowfast", **headers})
    if secret:
        basic = base64.b64encode(unquote(secret).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {basic}")
    return request


def _download_rest(url: str, part: Path) -> bool:
    """Append the missing bytes of `url` to `part`; return False if the connection ended early."""
    offset = part.stat().st_size if part.is_file() else 0
    headers = {}
    if offset:
        unmodified = formatdate(part.stat().st_mtime, usegmt=True)
        headers = {"Range": f"bytes={offset}-", "If-Unmodified-Since": unmodified}
    try:
        response = build_opener(_WebOnly).open(_request(url, headers), timeout=STALL_SECONDS)
    except HTTPError as error:
        if offset == 0 or error.code not in (412, 416):
            raise
        if error.headers.get("Content-Range") == f"bytes */{offset}":  # the file is complete
            return True
        part.unlink()  # the file at the address has changed
        return _download_rest(url, part)
    with response:
        resumed = offset > 0 and response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            part.unlink()  # not the missing part
            return _download_rest(url, part)
        if response.headers.get_content_type() == "text/html":
            raise ValueError(f"{without_secrets(url)} is a web page, not a file; open it in a browser")
        length = response.headers.get("Content-Length", "")
        start = offset if resumed else 0
        total = start + int(length) if re.fullmatch("[0-9]+", length) else None
        with open(part, "ab" if resumed else "wb") as file:
            _copy(response, file, total)
            os.fsync(file.fileno())
            return total is None or file.tell() == total


def _copy(response: Any, file: IO[bytes], total: int | None) -> None:
    """Copy the body of a response to the end of `file`.

    Raises:
        TimeoutError: it is slower than STALL_BYTES in STALL_SECONDS.
    """
    bar = tqdm(total=total, initial=file.tell(), unit="B", unit_scale=True, desc=Path(file.name).stem, disable=None)
    checked, since = file.tell(), time.monotonic()
    with bar:
        while chunk := response.read1(1 << 20):
            file.write(chunk)
            bar.update(len(chunk))
            if file.tell() - checked >= STALL_BYTES:
                checked, since = file.tell(), time.monotonic()
            elif time.monotonic() - since > STALL_SECONDS:
                raise TimeoutError(f"fewer than {STALL_BYTES} bytes in {STALL_SECONDS} s")


def _from_hub(address: str) -> str:
    """Return the local path of `hf://OWNER/NAME[@REVISION]/FILE`, downloaded into the cache of huggingface_hub.

    Raises:
        ValueError: the address has another form, or the file cannot be downloaded.
    """
    match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", address)
    if not match:
        raise ValueError(f"{address} is not of the form hf://OWNER/NAME/FILE")
    import huggingface_hub  # slow to import, and most runs do not need it

    repository, revision, file = match.groups()
    try:
        return huggingface_hub.hf_hub_download(repository, file, revision=revision)
    except Exception as error:  # exceptions are those of its HTTP client, which differ between versions
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{address} cannot be downloaded ({first}); check the address, or download the file in another way and "
            "give its path"
        ) from error


def _manifest(part: str) -> dict[str, Any]:
    return json.loads(MANIFEST.read_text(encoding="utf-8")).get(part, {})


def released_weights() -> dict[str, dict[str, Any]]:
    """Return the rows of `manifest.json` by name of the weights; aliases are names too."""
    named = {name: {"name": name, **entry} for name, entry in _manifest("weights").items()}
    return {alias: entry for entry in named.values() for alias in (entry["name"], *entry.get("aliases", ()))}


def _fetch_released(entry: dict[str, Any]) -> Path:
    """Return the file of a row of the manifest, downloaded unless it is there.

    The file may have its name, an alias, or its publisher's file name. Google Drive, which often requires a browser,
    is tried after all other places.
    """
    published = [entry[place] for place in ("hub", "url") if place in entry]
    suffix = Path(published[0] if published else ".pth").suffix or ".pth"
    names = [Path(name).name.removesuffix(suffix) + suffix for name in (entry["name"], *entry.get("aliases", ()))]
    names += [unquote(address.rpartition("/")[2]) for address in published]
    for path in (folder / name for name in dict.fromkeys(names) for folder in (PRETRAINED, home())):
        if path.is_file():
            _check_once(path, entry)
            return path
    target, checksum, reasons = home() / names[0], entry.get("sha256", ""), []
    if "hub" in entry:
        try:
            return Path(_from_hub(entry["hub"]))
        except ValueError as error:
            reasons.append(str(error))
    address = entry.get("url") or (GOOGLE_DRIVE.format(entry["google_drive"]) if "google_drive" in entry else "")
    if address:
        try:
            download(address, target, checksum)
            return target
        except ValueError as error:
            reasons.append(str(error))
    if "google_drive" in entry:
        page = f"https://drive.google.com/file/d/{entry['google_drive']}/view"
        reasons.append(f"open {page} in a browser, download the file and save it as {target}")
    raise ValueError("\n  ".join([f"released weights {entry['name']} cannot be downloaded:", *reasons]))


def _check_once(path: Path, entry: dict[str, Any]) -> None:
    """Compare a file with the checksum of its row; store the result beside it, as NAME.sha256, until it changes.

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
        with contextlib.suppress(OSError):  # a read-only folder: the next process computes it again
            write_text(record, " ".join([digest, *version]) + "\n")
    if not digest.startswith(checksum):
        cure = "and it is downloaded again" if "google_drive" not in entry else "and download it again"
        raise ValueError(
            f"{path} has SHA-256 {digest} instead of {checksum}... of {entry['name']}: it is damaged or another file; "
            f"remove it, {cure}"
        )


class _Downloads(PathHandler):
    """Handler of web addresses, whose files are downloaded to `home()` once."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["http://", "https://"]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        for entry in released_weights().values():
            if entry.get("url") == path:
                return str(_fetch_released(entry))
        parts = urlsplit(path)
        # the address becomes the path below home(), so that equal file names do not collide
        folders = [unquote(part) for part in parts.path.split("/")]
        host = parts.netloc.rpartition("@")[2]
        names = [quote(part, safe=" +@") for part in (host, *folders) if part not in ("", ".", "..")]
        if len(names) < 2:
            raise ValueError(f"{without_secrets(path)} does not name a file: write https://HOST/FILE")
        if parts.query or len(names[-1]) > 200:  # a file name has at most 255 bytes
            name, digest = Path(names[-1]), hashlib.sha256(f"{folders[-1]}?{parts.query}".encode()).hexdigest()
            names[-1] = f"{name.stem[:100]}-{digest[:16]}{name.suffix[:20]}"
        local = home().joinpath(*names)
        download(path, local)
        return str(local)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        if "r" not in mode:
            raise ValueError(f"{without_secrets(path)} is a web address, which can only be read")
        return open(self._get_local_path(path), mode, buffering)


class _Hub(_Downloads):
    """Handler of files on the Hugging Face Hub: hf://OWNER/NAME/FILE."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["hf://"]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return _from_hub(path)


path_manager = PathManager()
path_manager.register_handler(_Downloads())
path_manager.register_handler(_Hub())


def fetch(address: str | os.PathLike) -> str:
    """Return the local path of a local file, a name in `manifest.json`, an address, or a path of iopath.

    A file that is not local is downloaded once. A local path is not checked and may not exist.

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
    """Return the local path of a file that `fetch` finds and that exists.

    Raises:
        ValueError: it does not exist.
    """
    local = fetch(address)
    if not os.path.isfile(local):
        if reason := _manifest("never_released").get(str(address)):
            raise ValueError(f"checkpoint {str(address)!r} does not exist: {reason}")
        close = ", ".join(get_close_matches(str(address), released_weights(), n=3))
        near = f" (near ones: {close})" if close else ""
        raise ValueError(
            f"checkpoint {str(address)!r} does not exist, and no released weights have this name{near}; check the path "
            "(TRAIN/TEST.CHECKPOINT_FILE_PATH)"
        )
    return local
