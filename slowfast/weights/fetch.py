"""Find weight files: local paths, names of released weights, and web addresses."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import time
from email.utils import formatdate, parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, getproxies, urlopen

from iopath.common.file_io import file_lock
from tqdm import tqdm

from slowfast.utils.io import check_output, sha256
from slowfast.utils.tables import close_to

logger = logging.getLogger(__name__)

RELEASED = Path(__file__).with_name("released.json")
# Folder for files that users put into a checkout; downloads go to `home()`.
PRETRAINED = Path(__file__).parents[2] / "pretrained"
GOOGLE_DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
STALL_SECONDS = 60  # without any byte, after which a download fails
CHUNK = 1 << 16  # bytes


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
    """Download a file, which appears complete or not at all; an existing file is kept.

    After an interruption, the received bytes stay in a file `.part` beside it, and the next call continues from
    there. If several processes request the same file, only one of them downloads it.

    Args:
        url: web address.
        path: the local file.
        checksum: the SHA-256 of the file or its first digits; "" if unknown.

    Raises:
        ValueError: the folder cannot be written, there is no file at the address, the connection broke and was not
            resumed, or the checksum differs.
    """
    if path.is_file():  # perhaps in a folder that cannot be written
        return
    check_output(str(path), "file below SLOWFAST_HOME")
    part = path.with_name(path.name + ".part")
    with file_lock(str(path)):
        if path.is_file():
            return
        logger.info("downloading %s to %s", without_secrets(url), path)
        try:
            while not _download_rest(url, part):
                pass
            digest = sha256(part)
            if not digest.startswith(checksum.lower()):
                part.unlink()
                raise ValueError(f"it has SHA-256 {digest} instead of {checksum}... and was removed")
        except (OSError, HTTPException, ValueError) as error:
            reason = str(error) or type(error).__name__
            cure = f"repeat to continue, check the address, or download it in another way and save it as {path}"
            raise ValueError(f"{without_secrets(url)} cannot be downloaded ({reason}): {cure}") from None
        os.replace(part, path)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _download_rest(url: str, part: Path) -> bool:
    """Append the bytes of `url` that `part` lacks; return False if the connection broke after some of them.

    The time of change of `part` is that of the file on the server, which sends the whole file if it has changed since.
    """
    offset = _size(part)
    request = _request(url)
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        request.add_header("If-Range", formatdate(part.stat().st_mtime, usegmt=True))
    try:
        with urlopen(request, timeout=STALL_SECONDS) as response:
            if response.headers.get_content_type() == "text/html":
                raise ValueError("it is a web page, not a file")
            resumed = response.status == 206
            length = response.headers.get("Content-Length")
            total = None if length is None else offset * resumed + int(length)
            modified = response.headers.get("Last-Modified")
            bar: dict[str, Any] = {"total": total, "initial": offset * resumed, "desc": part.stem, "disable": None}
            with open(part, "ab" if resumed else "wb") as file, tqdm.wrapattr(response, "read", **bar) as body:
                try:
                    shutil.copyfileobj(body, file, CHUNK)
                finally:
                    file.flush()
                    if modified:
                        os.utime(part, (time.time(), parsedate_to_datetime(modified).timestamp()))
        if total is not None and _size(part) < total:
            raise ConnectionError("the connection broke")
    except HTTPError as error:
        if error.code == 416:  # there are no more bytes, so it is another file
            part.unlink()
        raise
    except (OSError, HTTPException):
        if _size(part) <= offset:
            raise
        return False
    return True


def _request(url: str) -> Request:
    """Return the request of an address; its password is sent to the server only, not where the server redirects to."""
    parts = urlsplit(url)
    secret, _, place = parts.netloc.rpartition("@")
    request = Request(parts._replace(netloc=place).geturl(), headers={"User-Agent": "slowfast"})
    if secret:
        basic = base64.b64encode(unquote(secret).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {basic}")
    return request


def _fetch_url(url: str) -> str:
    """Return the local path of a web address, downloaded once to `home()`/HOST/FOLDERS/FILE."""
    parts = urlsplit(url)
    names = [unquote(name) for name in (parts.netloc.rpartition("@")[2], *parts.path.split("/"))]
    names = [quote(name, safe=" +@") for name in names if name not in ("", ".", "..")]
    if len(names) < 2:
        raise ValueError(f"{without_secrets(url)} does not name a file: write https://HOST/FILE")
    if parts.query or len(names[-1]) > 200:  # a file name has at most 255 bytes
        whole = f"{unquote(parts.path.rpartition('/')[2])}?{parts.query}"
        name, digest = Path(names[-1]), hashlib.sha256(whole.encode()).hexdigest()
        names[-1] = f"{name.stem[:100]}-{digest[:16]}{name.suffix[:20]}"
    local = home().joinpath(*names)
    download(url, local)
    return str(local)


def _fetch_from_hub(address: str) -> str:
    """Return the local path of `hf://OWNER/NAME[@REVISION]/FILE`, downloaded into the cache of huggingface_hub."""
    match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", address)
    if not match:
        raise ValueError(f"{address} is not an address of the Hugging Face Hub: write hf://OWNER/NAME/FILE")
    import huggingface_hub  # slow to import, and most runs do not need it
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    repository, revision, file = match.groups()
    unknown = "" if HF_HUB_OFFLINE else _unknown_host(ENDPOINT)  # it would repeat the request for 24 s
    try:
        return huggingface_hub.hf_hub_download(repository, file, revision=revision, local_files_only=bool(unknown))
    except Exception as error:  # any type: the exceptions come from its HTTP client, which differs between versions
        first = unknown or (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{address} cannot be downloaded ({first}): check the address, or give a local path"
        ) from error


def _unknown_host(url: str) -> str:
    """Return why a host has no IP address here; "" if it has one, or if a proxy may find it."""
    host = urlsplit(url).hostname
    try:
        if not {"http", "https", "all"} & {*getproxies()}:
            socket.getaddrinfo(host, None)
    except OSError as error:
        return f"{host}: {error.strerror}"
    return ""


def _table(part: str) -> dict[str, Any]:
    return json.loads(RELEASED.read_text(encoding="utf-8")).get(part, {})


def released_weights() -> dict[str, dict[str, Any]]:
    """Return the rows of `released.json` by name of the weights, by alias and by web address."""
    rows: list[dict[str, Any]] = [{"name": name, "aliases": [], **row} for name, row in _table("weights").items()]
    return {alias: row for row in rows for alias in (row["name"], *row["aliases"], row.get("url")) if alias}


def _fetch_released(entry: dict[str, Any]) -> str:
    """Return the path of the file of a row of `released.json`; download the file if it does not exist.

    The file may have the name of the row, an alias, or the file name of its publisher. Google Drive, which often
    requires a browser, is tried last.
    """
    published = [entry[place] for place in ("hub", "url") if place in entry]
    suffix = Path(published[0] if published else ".pth").suffix or ".pth"
    names = [Path(name).name.removesuffix(suffix) + suffix for name in (entry["name"], *entry["aliases"])]
    names += [unquote(address.rpartition("/")[2]) for address in published]
    for path in (folder / name for name in dict.fromkeys(names) for folder in (PRETRAINED, home())):
        if path.is_file():
            return str(path)
    target, reasons = home() / names[0], []
    if "google_drive" in entry:
        published.append(GOOGLE_DRIVE.format(entry["google_drive"]))
    for address in published:
        try:
            if address.startswith("hf://"):
                return _fetch_from_hub(address)
            download(address, target, entry.get("sha256", ""))
            return str(target)
        except ValueError as error:
            reasons.append(str(error))
    if "google_drive" in entry:
        page = f"https://drive.google.com/file/d/{entry['google_drive']}/view"
        reasons.append(f"open {page} in a browser, download the file and save it as {target}")
    raise ValueError("\n  ".join([f"released weights {entry['name']} cannot be downloaded:", *reasons]))


def fetch(address: str | os.PathLike[str]) -> str:
    """Return the local path of a local file, a name in `released.json`, a web address, or hf://OWNER/NAME/FILE.

    A file that is not local is downloaded once. A local path is not checked and may not exist.

    Raises:
        ValueError: the address cannot be fetched.
    """
    address = str(address)
    if os.path.isfile(address):
        return address
    if entry := released_weights().get(address):
        return _fetch_released(entry)
    if address.startswith("hf://"):
        return _fetch_from_hub(address)
    return _fetch_url(address) if address.startswith(("http://", "https://")) else address


def fetch_checkpoint(address: str | os.PathLike[str]) -> str:
    """Return the local path of a file that `fetch` finds and that exists.

    Raises:
        ValueError: it does not exist.
    """
    local = fetch(address)
    if not os.path.isfile(local):
        if reason := _table("never_released").get(str(address)):
            raise ValueError(f"checkpoint {str(address)!r} does not exist: {reason}")
        if os.path.isdir(local):
            raise ValueError(
                f"checkpoint {str(address)!r} is a folder: name a file, such as best.pyth in checkpoints/ of a run"
            )
        near = close_to(str(address), released_weights(), 3)
        reason = f"does not exist, and no released weights have this name{near}"
        raise ValueError(f"checkpoint {str(address)!r} {reason}: check the path")
    return local
