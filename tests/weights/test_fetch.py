"""Test downloads from a local server that resumes, refuses, changes its files and breaks connections."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from slowfast.utils.io import write_text
from slowfast.weights import fetch
from slowfast.weights.tensors import load_tensors

CONTENT = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Site:
    """Settings of the server; `requests` are the Range headers that it received."""

    url: str = ""
    content: bytes = CONTENT
    modified: float = 1_000_000_000.0
    cut: list[int] = field(default_factory=list)  # bytes to send until each of the first connections breaks
    ranges: bool = True
    status: int = 200
    kind: str = "application/octet-stream"
    location: str = ""  # of a redirection
    drip: float = 0.0  # seconds between bytes, without an end
    authorization: list[str | None] = field(default_factory=list)
    requests: list[str | None] = field(default_factory=list)


@pytest.fixture
def site(monkeypatch, tmp_path):
    here = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            here.requests.append(wanted)
            here.authorization.append(self.headers.get("Authorization"))
            if here.location:
                self.send_response(302)
                self.send_header("Location", here.location)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            same = self.headers.get("If-Range") == formatdate(here.modified, usegmt=True)
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and same and here.ranges else 0
            if here.status != 200:
                return self.send_error(here.status)
            self.close_connection = True
            if start and start >= len(here.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(here.content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(here.content) - 1}/{len(here.content)}")
            self.send_header("Content-Type", here.kind)
            self.send_header("Last-Modified", formatdate(here.modified, usegmt=True))
            if not here.drip:
                self.send_header("Content-Length", str(len(here.content) - start))
            self.end_headers()
            while here.drip:
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return
                time.sleep(here.drip)
            body = here.content[start:]
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a client may close early
                self.wfile.write(body[: here.cut.pop(0)] if here.cut else body)

        def log_message(self, *arguments) -> None:
            pass

    (tmp_path / "pretrained").mkdir()
    monkeypatch.setenv("SLOWFAST_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fetch, "PRETRAINED", tmp_path / "pretrained")
    monkeypatch.setattr(fetch, "RELEASED", tmp_path / "released.json")
    release()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield here
    server.shutdown()
    thread.join()
    server.server_close()


def release(**entries) -> None:
    write_text(fetch.RELEASED, json.dumps({"weights": entries}))


def test_a_file_is_downloaded_once(site):
    path = fetch.fetch(f"{site.url}/some/model.pth")
    assert Path(path).read_bytes() == CONTENT
    assert path.startswith(str(fetch.home())) and path.endswith("some/model.pth")
    assert fetch.fetch(f"{site.url}/some/model.pth") == path and len(site.requests) == 1
    assert fetch.fetch(f"{site.url}/other/model.pth?key=1") != path
    assert not list(fetch.home().rglob("*.part"))


def test_a_folder_that_cannot_be_written_is_an_error_only_for_a_new_file(site, tmp_path, monkeypatch):
    path = Path(fetch.fetch(f"{site.url}/model.pth"))
    lock = path.with_name(f"{path.name}.lock")
    lock.unlink()
    lock.mkdir()  # the file cannot be locked, as in a folder of another user
    assert fetch.fetch(f"{site.url}/model.pth") == str(path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("SLOWFAST_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"SLOWFAST_HOME .*/model\.pth"):
        fetch.fetch(f"{site.url}/model.pth")


def test_addresses_stay_in_the_folder(site):
    path = fetch.fetch(f"{site.url}/../..//%2e%2e/a%2fb/x.pth")
    assert os.path.realpath(path).startswith(os.path.realpath(fetch.home()) + os.sep)


def test_long_addresses_have_short_names(site):
    paths = {fetch.fetch(f"{site.url}/x.safetensors?{'token=1&' * 100}{end}") for end in "ab"}
    paths |= {fetch.fetch(f"{site.url}/{'x' * 300}.pth")}
    assert len(paths) == 3
    for path in map(Path, paths):
        assert len(path.name) < 200 and path.suffix in (".safetensors", ".pth") and path.read_bytes() == CONTENT


def test_a_broken_connection_is_resumed(site, tmp_path):
    site.cut = [300_000, 200_000]
    fetch.download(f"{site.url}/x", tmp_path / "x", DIGEST)
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert site.requests == [None, "bytes=300000-", "bytes=500000-"]


def test_the_next_call_continues_a_download(site, tmp_path):
    site.cut = [300_000, 0]
    with pytest.raises(ValueError, match=r"repeat to continue.*save it as .*x"):
        fetch.download(f"{site.url}/x", tmp_path / "x", DIGEST)
    assert not (tmp_path / "x").exists() and (tmp_path / "x.part").stat().st_size == 300_000
    fetch.download(f"{site.url}/x", tmp_path / "x", DIGEST[:8].upper())
    assert (tmp_path / "x").read_bytes() == CONTENT and site.requests[-1] == "bytes=300000-"


@pytest.mark.parametrize("why", ["changed", "longer", "no ranges"])
def test_a_part_of_another_file_is_replaced(why, site, tmp_path):
    part = tmp_path / "x.part"
    part.write_bytes(b"old" * (500_000 if why == "longer" else 1000))
    os.utime(part, (site.modified, site.modified - (why == "changed")))
    site.ranges = why != "no ranges"
    if why == "longer":
        with pytest.raises(ValueError, match="repeat"):
            fetch.download(f"{site.url}/x", tmp_path / "x", DIGEST)
    fetch.download(f"{site.url}/x", tmp_path / "x", DIGEST)
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_a_file_with_a_wrong_checksum_is_removed(site, tmp_path):
    with pytest.raises(ValueError, match=rf"SHA-256 {DIGEST} instead of 0123"):
        fetch.download(f"{site.url}/x", tmp_path / "x", "0123")
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.part").exists()


def test_an_address_without_a_file_is_an_error(site, tmp_path):
    site.status = 404
    with pytest.raises(ValueError, match=r"HTTP .*404.*check the address"):
        fetch.download(f"{site.url}/x", tmp_path / "x")
    site.status, site.kind = 200, "text/html; charset=utf-8"
    with pytest.raises(ValueError, match="is a web page"):
        fetch.download(f"{site.url}/x", tmp_path / "x")
    with pytest.raises(ValueError, match="cannot be downloaded"):
        fetch.download("http://127.0.0.1:9/x", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_processes_that_request_the_same_file_share_one_download(site, tmp_path):
    threads = [
        threading.Thread(target=fetch.download, args=(f"{site.url}/x", tmp_path / "x", DIGEST)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "x").read_bytes() == CONTENT and len(site.requests) == 1


def test_names_of_released_weights(site, tmp_path):
    entry = {"url": f"{site.url}/deep/b16.pyth", "sha256": DIGEST[:8], "aliases": ["k710/some+b16.pyth"]}
    release(some_b16=entry, bad={"url": f"{site.url}/bad.pth", "sha256": "00000000"})
    path = fetch.fetch("some_b16")
    assert path == str(fetch.home() / "some_b16.pyth")
    assert fetch.fetch("k710/some+b16.pyth") == fetch.fetch(entry["url"]) == path and len(site.requests) == 1
    with pytest.raises(ValueError, match="SHA-256"):
        fetch.fetch("bad")
    with pytest.raises(ValueError, match="SHA-256"):
        fetch.fetch(f"{site.url}/bad.pth")
    # a file that was put there under another name of the row, or under that of its publisher
    for name in ("some+b16.pyth", "b16.pyth"):
        os.rename(path, fetch.PRETRAINED / name)
        path = fetch.fetch("some_b16")
        assert path == str(fetch.PRETRAINED / name)


@pytest.mark.parametrize("address", ["http://", "https:///x.pth", "http://host", "http://host:port/x.pth", "hf://a/b"])
def test_addresses_that_name_no_file_are_refused(address, site):
    with pytest.raises(ValueError):
        fetch.fetch(address)


def test_a_stalled_download_fails(site, tmp_path, monkeypatch):
    site.drip = 1.0
    monkeypatch.setattr(fetch, "STALL_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(ValueError):
        fetch.download(f"{site.url}/x", tmp_path / "x")
    assert time.monotonic() - started < 5 and not (tmp_path / "x").exists()
    site.drip = 0


@pytest.mark.parametrize("scheme", ["file", "gopher"])
def test_a_redirection_stays_on_the_web(scheme, site, tmp_path):
    site.location = f"{scheme}://127.0.0.1/x"
    with pytest.raises(ValueError):
        fetch.download(f"{site.url}/x", tmp_path / "x")
    assert len(site.requests) == 1 and not (tmp_path / "x").exists()


def test_secrets_of_an_address_are_sent_and_never_shown(site, caplog):
    caplog.set_level("INFO", "slowfast")
    address = f"{site.url.replace('//', '//me:s3cret@')}/x.pth?token=s3cret"
    path = fetch.fetch(address)
    assert Path(path).read_bytes() == CONTENT and site.authorization == ["Basic bWU6czNjcmV0"]
    site.status = 404
    with pytest.raises(ValueError) as error:
        fetch.fetch(address + "2")
    assert "s3cret" not in path + caplog.text + str(error.value) and error.value.__cause__ is None


HUB = """
import sys
from slowfast.weights.fetch import fetch
for address in sys.argv[1:]:
    try:
        print(open(fetch(address), "rb").read().decode())
    except ValueError as error:
        print("ValueError")
"""


def test_files_of_the_hugging_face_hub(tmp_path):
    """The server behaves as the hub: each file has a commit and an ETag."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            found = self.path in ("/me/some/resolve/main/a%2Bb.pyth", "/me/some/resolve/v2/deep/a.pyth")
            body = self.path.encode() if found else b""
            self.send_response(200 if found else 404)
            for name, value in {"X-Repo-Commit": "0" * 40, "ETag": f'"{len(body)}"'}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *arguments) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    addresses = ["hf://me/some/a+b.pyth", "hf://me/some@v2/deep/a.pyth", "hf://me/some/none.pyth"]
    command = [sys.executable, "-c", HUB, *addresses]
    done = subprocess.run(command, env={**os.environ, **home}, capture_output=True, text=True, check=True)
    server.shutdown()
    server.server_close()
    found = ["/me/some/resolve/main/a%2Bb.pyth", "/me/some/resolve/v2/deep/a.pyth", "ValueError"]
    assert done.stdout.split() == found
    home["HF_ENDPOINT"] = "http://hub.invalid"  # as on a machine without a network
    done = subprocess.run(command, env={**os.environ, **home}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == found and "hub.invalid" not in done.stderr  # no request, which would be repeated


def test_released_weights_come_from_the_hub_and_then_from_elsewhere(site, monkeypatch):
    release(some={"hub": "hf://me/some/x.pth", "url": f"{site.url}/x.pth"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hosts, look_up = [], socket.getaddrinfo
    monkeypatch.setattr("socket.getaddrinfo", lambda *address: hosts.append(address[0]) or look_up(*address))
    path = Path(fetch.fetch("some"))
    assert path.read_bytes() == CONTENT and len(site.requests) == 1
    assert hosts == ["127.0.0.1"]  # not the hub, which takes long if no name server answers
    path.unlink()
    (fetch.PRETRAINED / "x.pth").write_bytes(b"mine")
    assert Path(fetch.fetch("some")).read_bytes() == b"mine"


def test_files_of_google_drive_are_downloaded(site, monkeypatch):
    release(drive={"google_drive": "abc123"})
    monkeypatch.setattr(fetch, "GOOGLE_DRIVE", f"{site.url}/drive?id={{}}")
    site.kind = "text/html"
    with pytest.raises(ValueError, match=r"open https://drive.google.com/file/d/abc123/view .*drive\.pth"):
        fetch.fetch("drive")
    site.kind = "application/octet-stream"
    assert Path(fetch.fetch("drive")).read_bytes() == CONTENT


def test_tensors_are_loaded_from_paths_and_addresses(site, tmp_path):
    assert fetch.fetch(tmp_path / "any.pth") == str(tmp_path / "any.pth")
    torch.save({"a": torch.arange(3)}, tmp_path / "a.pth")
    assert load_tensors(tmp_path / "a.pth")["a"].tolist() == [0, 1, 2]
    site.content = (tmp_path / "a.pth").read_bytes()
    assert load_tensors(f"{site.url}/a.pth")["a"].tolist() == [0, 1, 2]


def test_weights_that_were_never_released():
    with pytest.raises(ValueError, match=r"does not exist: the authors.* Start from k710_uniformerv2_l14_8x336"):
        load_tensors("k400/k400+k710_uniformerv2_l14_8x336.pyth")
    assert "k710_uniformerv2_l14_8x336" in fetch.released_weights()


def test_released_weights_have_complete_rows():
    """Every row has one place and, where there is one, a checksum of hexadecimal digits; no file name is used twice."""
    entries = {entry["name"]: entry for entry in fetch.released_weights().values()}
    assert len(entries) == 140
    for entry in entries.values():
        assert ("url" in entry) != ("google_drive" in entry)
        assert entry.get("url", "https://").startswith("https://")
        assert re.fullmatch(r"hf://[\w-]+/\w+/[\w+]+\.(pth|pyth)", entry.get("hub", "hf://a/b/c.pth"))
        assert len(entry.get("sha256", "0" * 8)) in (8, 64) and int(entry.get("sha256", "0"), 16) >= 0
    for places in (
        [entry.get("url") or entry["google_drive"] for entry in entries.values()],
        [entry["hub"] for entry in entries.values() if "hub" in entry],
    ):
        assert len(set(places)) == len(places)
    rows = json.loads(fetch.RELEASED.read_text())["weights"]
    names = [alias for name, row in rows.items() for alias in (name, *row.get("aliases", ()))]
    assert len(set(names)) == len(names)
    clip = entries["clip_vit_b16"]
    assert clip["sha256"] in clip["url"]
