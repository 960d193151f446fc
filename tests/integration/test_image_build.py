"""`ravebot image build` as a process of its own: one real image, of the preset `rave`, read back from its disk; and
builds that fail."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ravebot.images import disk, tools, tree
from ravebot.images.layers import BASE, RAVE
from ravebot.images.recipe import Preset, Recipe
from tests.support.image_files import read_back

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

needs_npm = pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")

# Everything of the host that could be found in an image gets this in its name or content.
LEAK = "telltale4711"
MACHINE_ID = "1eaf" * 8
SCRIPT = b"""\
#!/bin/sh
set -eu
echo "the script runs as $(id -un) on $(hostname), and the system is $(cat /proc/sys/kernel/ostype)"
apt-get -qq download hello
test -s hello_*.deb
id agent >/srv/agent
"""


@dataclass(frozen=True)
class Image:
    """A built image, the files in it, and what the build printed."""

    file: Path
    root: Path
    manifest: dict[str, object]
    output: str
    steps: str

    def parts(self) -> dict[str, dict[str, str]]:
        """What the start page says of the RAVE stack, by name."""
        return {part["name"]: part for part in json.loads((self.root / "usr/share/rave/start/parts.json").read_text())}


class Builder:
    """Folders for a build, and the command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "images"
        self.temporary = folder / "tmp"
        self.out = self.folder / "sandbox.qcow2"
        for made in (self.folder, self.temporary):
            made.mkdir()
        self.environment = {
            **os.environ,
            "TMPDIR": str(self.temporary),
            "no_proxy": f"{LEAK}-proxy.example",
            "COLUMNS": "400",
        }

    def start(self, *arguments: str, within: tuple[str, ...] = (), out: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*within, sys.executable, "-m", "ravebot", "image", "build", *arguments, str(out or self.out)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment,
        )  # fmt: skip

    def run(self, *arguments: str, within: tuple[str, ...] = (), out: Path | None = None) -> tuple[int, str, str]:
        process = self.start(*arguments, within=within, out=out)
        output, errors = process.communicate(timeout=900)
        assert "Traceback" not in errors
        return process.returncode, output, errors

    def wait_for_packages(self, process: subprocess.Popen[str]) -> None:
        """Until packages are being fetched."""
        deadline = time.monotonic() + 60
        while not any(self.temporary.glob("ravebot-image-*/root/var/lib/apt/lists/*InRelease")):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)

    def leftovers(self) -> list[str]:
        """Files, processes and mounts of builds."""
        found = [str(path) for folder in (self.folder, self.temporary) for path in folder.iterdir()]
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has ended
                continue
            if str(self.temporary) in command:
                found.append(command)
        mounts = Path("/proc/mounts").read_text().splitlines()
        return found + [line for line in mounts if f"{self.temporary}/ravebot-image" in line]


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def with_leaks(folder: Path) -> tuple[str, ...]:
    """A command that runs another where the host's own secrets are known to the test."""
    shutil.copytree("/etc/apt", folder / "apt", ignore=shutil.ignore_patterns("S.*"))
    sources = folder / "apt/sources.list.d"
    mirror = next(line.split("//")[1].split("/")[0] for line in _source_lines(folder / "apt") if "//" in line)
    (folder / "apt/apt.conf.d/99proxy").write_text(
        f'Acquire::http::Proxy::{LEAK}.example "http://{LEAK}:{LEAK}@{LEAK}-proxy.example:3142";\n'
    )
    (folder / "apt/auth.conf.d").mkdir(exist_ok=True)
    (folder / "apt/auth.conf.d/mirror.conf").write_text(f"machine {mirror} login {LEAK} password {LEAK}\n")
    (sources / "other.list").write_text(f"deb https://{LEAK}.example/apt bookworm main\n")
    (folder / "ssh").mkdir()
    (folder / "ssh/ssh_host_ed25519_key").write_text(f"{LEAK}\n")
    (folder / "machine-id").write_text(f"{MACHINE_ID}\n")
    (folder / "hostname").write_text(f"{LEAK}-host\n")
    binds = "".join(f"mount --bind {folder}/{name} /etc/{name}; " for name in ("apt", "ssh", "machine-id", "hostname"))
    command = f'set -e; touch /etc/machine-id; mkdir -p /etc/ssh; {binds} hostname {LEAK}-host; exec "$@"'
    return ("unshare", "--mount", "--uts", "/bin/sh", "-c", command, "sh")


def _source_lines(apt: Path) -> list[str]:
    files = [
        apt / "sources.list",
        *(apt / "sources.list.d").glob("*.list"),
        *(apt / "sources.list.d").glob("*.sources"),
    ]
    texts = [file.read_text() for file in files if file.exists()]
    return [line for text in texts for line in text.splitlines() if line.startswith(("deb ", "URIs:"))]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    folder = tmp_path_factory.mktemp("image")
    builder = Builder(folder)
    script = folder / "script"
    script.write_bytes(SCRIPT)
    (folder / "host").mkdir()
    code, output, errors = builder.run(
        "--suite",
        "bookworm",
        "--preset",
        "rave",
        "--packages",
        "cron",
        "--script",
        str(script),
        within=with_leaks(folder / "host"),
    )
    assert code == 0, errors
    assert sorted(path.name for path in builder.folder.iterdir()) == ["sandbox.qcow2", "sandbox.qcow2.manifest.json"]
    assert list(builder.temporary.iterdir()) == []
    root = read_back(builder.out, folder)
    manifest = json.loads(Path(f"{builder.out}.manifest.json").read_text())
    return Image(builder.out, root, manifest, output, errors)


def test_the_build_says_what_it_did_and_what_comes_next(image: Image) -> None:
    steps = [line.partition(":")[0] for line in image.steps.splitlines() if line.endswith(" s")]
    scripts = [f"install script of {layer}" for layer in ("base", "web", "rave")]
    assert steps == ["packages of npm", "packages", "files", *scripts, "script", "clean-up", "disk", "qcow2"]
    done, following = image.output.splitlines()
    assert done.startswith(f"{image.file}: ")
    assert "MiB, a disk of " in done
    assert following == f"Next: ravebot image check {image.file}"
    closed = [line for line in image.steps.splitlines() if "QEMU's user can't reach the image there: chmod o+x" in line]
    assert len(closed) == 1, "pytest's folders are root's alone"


def test_the_script_runs_as_root_in_the_chroot_with_the_network_and_its_output_is_shown(image: Image) -> None:
    assert "  the script runs as root on sandbox, and the system is Linux\n" in image.steps
    assert "(agent)" in (image.root / "srv/agent").read_text()
    assert (image.root / "usr/sbin/cron").exists()


def test_nothing_of_the_host_is_in_the_image(image: Image) -> None:
    found = []
    needles = (LEAK.encode(), MACHINE_ID.encode())
    for path in image.root.rglob("*"):
        if LEAK in path.name:
            found.append(path)
        elif path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            if any(needle in content for needle in needles):
                found.append(path)
    assert found == []
    assert LEAK not in json.dumps(image.manifest)


def test_what_each_machine_makes_itself_is_absent(image: Image) -> None:
    assert (image.root / "etc/machine-id").read_bytes() == b""
    assert (image.root / "etc/resolv.conf").read_bytes() == b""
    assert not list((image.root / "etc/ssh").glob("ssh_host_*"))
    assert [path for path in (image.root / "var/log").rglob("*") if path.is_file()] == []
    assert not (image.root / "var/lib/systemd/random-seed").exists()


def test_sources_that_need_a_login_are_left_out_of_the_image_and_it_says_so(image: Image) -> None:
    text = (image.root / "etc/apt/sources.list.d/debian.sources").read_text()
    assert text.startswith("# Left out, because they need a login or a key of the builder's host: ")
    assert [path.name for path in (image.root / "etc/apt/sources.list.d").iterdir()] == ["debian.sources"]


def test_the_files_of_the_guest_are_root_s_with_the_modes_of_their_places(image: Image) -> None:
    for name in BASE.files():
        status = (image.root / name).stat()
        assert (status.st_uid, status.st_gid) == (0, 0)
        assert (image.root / name).read_bytes() == (BASE.folder / name).read_bytes()
    assert stat.S_IMODE((image.root / "etc/sudoers.d/agent").stat().st_mode) == 0o440
    assert stat.S_IMODE((image.root / "usr/local/sbin/grow-root").stat().st_mode) == 0o755
    assert not (image.root / "install.sh").exists()
    owner = (image.root / "srv/merge-request").stat()
    assert (owner.st_uid, stat.S_IMODE(owner.st_mode)) == (1000, 0o755)


def test_the_manifest_names_what_is_in_the_image(image: Image) -> None:
    manifest = image.manifest
    assert (manifest["suite"], manifest["preset"]) == ("bookworm", "rave")
    assert manifest["packages"] == asyncio.run(tree.packages(image.root, os.environ))
    assert manifest["image_bytes"] == image.file.stat().st_size
    assert manifest["inputs_digest"] == Recipe(preset=Preset.RAVE, packages=("cron",), script=SCRIPT).digest()
    information = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", image.file]))
    assert manifest["virtual_bytes"] == information["virtual-size"]


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
        assert there or f"{name} is left out of the image: {parts[name]['left_out']}" in " ".join(image.steps.split())
    assert (image.root / "usr/local/sbin/grafana-secrets").exists() == ("left_out" not in parts["Grafana"])
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


# Builds that fail.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_build_that_is_interrupted_leaves_nothing(builder: Builder, number: signal.Signals) -> None:
    process = builder.start()
    builder.wait_for_packages(process)
    assert builder.leftovers() != []
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert builder.leftovers() == []


@contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_is_told_and_leaves_nothing(builder: Builder) -> None:
    with tmpfs(builder.temporary, "1300m"):
        process = builder.start()
        builder.wait_for_packages(process)
        subprocess.run(["mount", "-o", "remount,size=60m", builder.temporary], check=True)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 1
        assert "ravebot: step 'packages' failed" in errors
        assert "the disk is full" in errors
        assert builder.leftovers() == []


def test_too_little_room_is_told_before_anything_is_done(builder: Builder) -> None:
    with tmpfs(builder.temporary, "100m"):
        code, _, errors = builder.run()
    assert code == 1
    assert f"{builder.temporary} has 100 MiB free, and the build needs " in errors
    with tmpfs(builder.folder, "100m"):
        code, _, errors = builder.run()
    assert code == 1
    assert f"{builder.folder} has 100 MiB free, and the build needs " in errors


def test_a_temporary_folder_in_which_no_program_runs_is_told_before_anything_is_done(builder: Builder) -> None:
    with tmpfs(builder.temporary, "1300m,noexec"):
        code, _, errors = builder.run()
    assert code == 1
    assert f"{builder.temporary} is mounted noexec" in errors
    assert "TMPDIR can name another folder" in errors


def test_a_package_that_does_not_exist_is_told_by_the_last_lines_and_leaves_nothing(builder: Builder) -> None:
    code, output, errors = builder.run("--packages", "no-such-package-4711")
    assert (code, output) == (1, "")
    assert errors.splitlines()[-2:] == [
        "  E: Unable to locate package no-such-package-4711", "ravebot: step 'packages' failed",
    ]  # fmt: skip
    assert builder.leftovers() == []


def test_missing_tools_are_named_together_with_their_packages(builder: Builder) -> None:
    hidden = (
        'mount --bind /dev/null "$(command -v mmdebstrap)"; mount --bind /dev/null "$(command -v sfdisk)"; exec "$@"'
    )
    code, _, errors = builder.run(within=("unshare", "--mount", "/bin/sh", "-c", hidden, "sh"))
    assert code == 1
    assert errors == (
        "ravebot: building an image needs mmdebstrap, sfdisk: "
        "apt-get install --no-install-recommends fdisk mmdebstrap\n"
    )
    assert builder.leftovers() == []


def test_the_image_s_name_is_checked_first(builder: Builder) -> None:
    (builder.folder / "folder.qcow2").mkdir()
    builder.out.write_bytes(b"precious")
    for name, says in (
        ("sandbox.img", "{out}: the image's name must end with .qcow2"),
        ("none/sandbox.qcow2", "{out.parent}: there is no such folder"),
        ("folder.qcow2", "{out} is a folder"),
        ("sandbox.qcow2", "{out} exists: give --force to replace it"),
    ):
        out = builder.folder / name
        code, _, errors = builder.run(out=out)
        assert (code, f"Invalid value for OUT.qcow2: {says.format(out=out)} " in errors) == (2, True), errors
    assert builder.out.read_bytes() == b"precious"


def test_only_root_can_build(builder: Builder) -> None:
    code, _, errors = builder.run(within=("unshare", "--user"))
    assert (code, errors) == (
        1, "ravebot: building an image needs root, for its files' owners and a chroot: run it with sudo\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("--packages", "nginx,a b"),
            "for --packages: 'a b' is not the name of a Debian package; separate names with commas",
        ),
        (("--size", "many"), "for --size: write a size like"),
        (("--size", "1MiB"), "for --size: the size must be between"),
        (("--suite", "sid"), "sid"),
        (("--script", "/nonexistent"), "/nonexistent"),
        (("--script", "/etc/hostname"), "for --script: the script must begin with #!"),
    ],
)
def test_a_mistake_in_the_recipe_is_told_with_exit_status_2(
    builder: Builder, arguments: tuple[str, ...], says: str
) -> None:
    code, _, errors = builder.run(*arguments)
    assert code == 2
    assert says in errors
    assert builder.leftovers() == []


async def test_a_tree_of_many_small_files_gets_a_disk_that_holds_them(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for number in range(40):
        folder = root / "node_modules" / str(number)
        folder.mkdir(parents=True)
        for name in range(1000):
            (folder / str(name)).touch()
    environment = {"PATH": tools.path(os.environ)}
    await disk.make(root, tmp_path, disk.smallest_bytes(tree.used_bytes(root)), environment)
