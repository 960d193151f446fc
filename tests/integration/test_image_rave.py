"""The preset `rave`: what the host's npm brings, and one image that is read back from its disk."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ravebot.images import npm
from ravebot.images.recipe import RAVE, NpmPackage

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
needs_npm = pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")

CONTENT = b"what the package holds"
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


@dataclass(frozen=True)
class Image:
    """The files of a built image, its manifest, and what the builder said."""

    root: Path
    manifest: dict[str, object]
    said: str

    def parts(self) -> dict[str, dict[str, str]]:
        return {part["name"]: part for part in json.loads((self.root / "usr/share/rave/start/parts.json").read_text())}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    folder = tmp_path_factory.mktemp("rave")
    out, raw, root = folder / "rave.qcow2", folder / "raw", folder / "root"
    command = [sys.executable, "-m", "ravebot", "image", "build", "--preset", "rave", str(out)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    subprocess.run(["qemu-img", "convert", "-O", "raw", out, raw], check=True)
    root.mkdir()
    read = ["debugfs", "-R", f"rdump / {root}", f"{raw}?offset={1024**2}"]
    subprocess.run(read, check=True, capture_output=True)
    raw.unlink()
    yield Image(root, json.loads(Path(f"{out}.manifest.json").read_text()), built.stderr)
    shutil.rmtree(folder)


def test_the_manifest_lists_what_debian_has(image: Image) -> None:
    packages = image.manifest["packages"]
    assert isinstance(packages, dict)
    assert {"prometheus", "prometheus-node-exporter", "nginx-light"} <= set(packages)
    assert not {"npm", "nodejs"} & set(packages)


def test_each_part_is_in_the_image_or_the_page_and_the_builder_say_why_not(image: Image) -> None:
    site, units = image.root / "etc/nginx/rave", image.root / "etc/systemd/system"
    parts = image.parts()
    for name, conf, unit in (
        ("Prometheus", "prometheus", "prometheus.service.d"),
        ("Node exporter", "node", "prometheus-node-exporter.service.d"),
        ("Claude Code Router", "router", "claude-code-router.service"),
        ("Vibe Kanban", "kanban", "vibe-kanban.service"),
        ("Grafana", "grafana", "grafana-server.service.d"),
    ):
        there = "left_out" not in parts[name]
        assert (site / f"{conf}.conf").exists() == (units / unit).exists() == there, name
        assert there or f"{name} is left out of the image: {parts[name]['left_out']}" in " ".join(image.said.split())
    assert "left_out" not in parts["Prometheus"]
    assert not (image.root / "etc/systemd/system/multi-user.target.wants/prometheus.service").is_symlink()
    assert (units / "default.target").readlink() == Path("/etc/systemd/system/rave.target")


@needs_npm
def test_the_router_is_there_with_its_own_user_and_node(image: Image) -> None:
    assert image.parts()["Claude Code Router"]["version"] == RAVE.npm[1].version
    config = (image.root / "etc/claude-code-router/config.json").stat()
    users = (image.root / "etc/passwd").read_text()
    assert f"claude-code-router:x:{config.st_uid}:" in users
    assert config.st_mode & 0o777 == 0o600
    said = subprocess.run([image.root / "opt/node/bin/node", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"v{RAVE.npm[0].version}\n"
    version = [str(image.root / "opt/node/bin/node"), str(image.root / "opt/claude-code-router/dist/cli.js"), "version"]
    assert RAVE.npm[1].version in subprocess.run(version, capture_output=True, text=True, check=True).stdout


@needs_npm
def test_nothing_of_the_hosts_npm_is_in_the_image(image: Image) -> None:
    asked = ["npm", "config", "get", "registry"]
    registry = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split("//")[1].split("/")[0]
    for folder, folders, files in os.walk(image.root):
        place = Path(folder).relative_to(image.root)
        assert not {".npm", ".npmrc", "_logs", "_cacache", ".package-lock.json"} & {*folders, *files}, place
        # Documents and programs that come from packages may name the public registry.
        if place.parts[:1] in (("etc",), ("root",), ("home",), ("var",), ("srv",), ("tmp",)):
            for name in files:
                file = Path(folder, name)
                assert file.is_symlink() or registry.encode() not in file.read_bytes(), place / name
    assert not list((image.root / "var/tmp").iterdir())
