"""The preset `rave`: what the host's npm brings, and one image that is read back from its disk."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ravebot.errors import ImageBuildFailed
from ravebot.images import npm
from ravebot.images.layers import NpmPackage

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
needs_npm = pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")


def package(facts: dict[str, Any], **files: str) -> bytes:
    """An archive as npm makes them; a file's name has `__` for `/`."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, text in {"package.json": json.dumps(facts), **files}.items():
            info = tarfile.TarInfo(f"package/{name.replace('__', '/')}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return packed.getvalue()


CONTENT = package({"name": "@scope/here", "bin": "./run"}, run="#!/bin/sh\necho it runs\n")
PACKAGE = NpmPackage("@scope/here", "1.2.3", base64.b64encode(hashlib.sha512(CONTENT).digest()).decode())
ABSENT = replace(PACKAGE, name="absent")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A registry that has one package, as the host's npm is told to use it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tarball = f"http://{self.headers['Host']}/here.tgz"
            version = {"name": PACKAGE.name, "version": PACKAGE.version, "dist": {"tarball": tarball}}
            listed = {"name": PACKAGE.name, "versions": {PACKAGE.version: version}}
            answers = {"/here.tgz": CONTENT, "/@scope%2fhere": json.dumps(listed).encode()}
            body = answers.get(self.path)
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        monkeypatch.setenv("npm_config_registry", f"http://{host}/")
        monkeypatch.setenv("npm_config_fetch_retries", "0")
        yield host
        server.shutdown()


@needs_npm
def test_npm_brings_the_package_and_leaves_nothing_else(registry: str, tmp_path: Path) -> None:
    assert asyncio.run(npm.fetch([PACKAGE], tmp_path)) == ()
    assert [path.name for path in tmp_path.iterdir()] == ["here.tgz"]
    assert (tmp_path / "here.tgz").read_bytes() == CONTENT


@needs_npm
def test_who_builds_reads_what_npm_said_and_the_image_names_no_registry(registry: str, tmp_path: Path) -> None:
    said = asyncio.run(npm.fetch([ABSENT], tmp_path))
    assert said[0] == "absent 1.2.3: npm could not fetch it when the image was built (E404)"
    assert any(registry in line for line in said[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["absent.failed"]
    assert (tmp_path / "absent.failed").read_text() == "npm could not fetch it when the image was built (E404)\n"


@needs_npm
def test_another_file_under_the_known_version_does_not_get_into_the_image(registry: str, tmp_path: Path) -> None:
    asyncio.run(npm.fetch([replace(PACKAGE, sha512="other")], tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["here.failed"]
    assert "another file" in (tmp_path / "here.failed").read_text()


def test_a_host_without_npm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    asyncio.run(npm.fetch([PACKAGE], tmp_path))
    assert (tmp_path / "here.failed").read_text() == "the host that built the image has no npm\n"


@needs_npm
def test_a_program_that_is_asked_for_is_fetched_with_the_place_of_its_file(registry: str, tmp_path: Path) -> None:
    asyncio.run(npm.require([replace(PACKAGE, sha512="")], tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here.programs", "here.tgz"]
    assert (tmp_path / "here.programs").read_text() == "here run\n"


@needs_npm
def test_a_program_that_npm_does_not_have_ends_the_build(registry: str, tmp_path: Path) -> None:
    with pytest.raises(ImageBuildFailed, match=r"absent@1.2.3: npm could not fetch it .*\(E404\)"):
        asyncio.run(npm.require([ABSENT], tmp_path))


@pytest.mark.parametrize(
    ("facts", "files", "expected"),
    [
        ({"name": "a", "bin": {"one": "dist/one.js"}}, {"dist__one.js": ""}, {"one": "dist/one.js"}),
        ({"name": "@s/a", "bin": "./a.js"}, {"a.js": ""}, {"a": "a.js"}),
        ({"name": "a"}, {"bin__tool": "", "lib__other": ""}, {"tool": "bin/tool"}),
        ({"name": "a", "bin": {"one": "one"}, "dependencies": {"b": "1"}}, {"one": ""}, "depends on other packages"),
        ({"name": "a"}, {}, "has no program"),
        ({"name": "a", "bin": {"one": "../../etc/passwd"}}, {}, "has no usable file"),
        ({"name": "a", "bin": {"../../bin/sh": "one"}}, {"one": ""}, "has no usable file"),
        ({"name": "a", "bin": {"one": "absent"}}, {}, "has no usable file"),
    ],
)
def test_a_package_s_programs_are_found_or_it_says_why_not(
    tmp_path: Path, facts: dict[str, Any], files: dict[str, str], expected: dict[str, str] | str
) -> None:
    archive = tmp_path / "a.tgz"
    archive.write_bytes(package(facts, **files))
    if isinstance(expected, dict):
        assert npm.programs_of(archive) == expected
    else:
        with pytest.raises(ImageBuildFailed, match=expected):
            npm.programs_of(archive)


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    archive = tmp_path / "a.tgz"
    archive.write_bytes(b"no archive")
    with pytest.raises(ImageBuildFailed, match="can't be read"):
        npm.programs_of(archive)


def test_the_installed_program_runs(tmp_path: Path) -> None:
    """The script's paths are put below a folder, instead of a chroot."""
    folder = tmp_path / npm.IN_IMAGE
    folder.mkdir(parents=True)
    (tmp_path / "usr/local/bin").mkdir(parents=True)
    (folder / "here.tgz").write_bytes(CONTENT)
    (folder / "here.programs").write_text("here run\n")
    script = npm.INSTALL.replace("cd /", f"cd {tmp_path}/").replace('"/usr', f'"{tmp_path}/usr')
    subprocess.run(["sh", "-c", script], check=True)
    said = subprocess.run([tmp_path / "usr/local/bin/here"], capture_output=True, text=True, check=True)
    assert said.stdout == "it runs\n"
