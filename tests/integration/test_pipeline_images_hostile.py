"""What a job left is looked into, unpacked and converted by the real programs, or refused and leaves no trace."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ravebot.errors import RavebotError, Unavailable
from ravebot.images.pipelines import cage
from ravebot.images.pipelines.convert import Converted, ConvertLimits, convert
from ravebot.images.pipelines.qcow2 import PipelineImageRefused, look_into
from ravebot.images.pipelines.room import Abandoned, HostDiskShort, WorkGuard
from ravebot.images.pipelines.unpack import unpack
from ravebot.images.pipelines.workshop import MARKER, ImageWorkshop
from tests.support.image_place import needs_qemu_img

pytestmark = [
    pytest.mark.integration,
    needs_qemu_img,
]

MIB, TIB = 1024**2, 1024**4
MOST = 64 * MIB


def qemu_img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk of 16 MiB, of which some are not zeros."""
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    with path.open("wb") as file:
        file.write(b"boot" + os.urandom(MIB))
        file.truncate(16 * MIB)
        file.seek(9 * MIB)
        file.write(os.urandom(MIB // 4))
    return path


class Bench:
    """A workshop, and how files of a job fare in it."""

    def __init__(self, folder: Path) -> None:
        self.shop = ImageWorkshop(folder / "images")
        self.shop.prepare(())
        self.target = self.shop.name(7, "a" * 64)
        self.files = folder

    def take(self, source: Path, name: str = "sandbox.qcow2", most: int = MOST, kept: int = MOST) -> Converted:
        """As the bot does with a file that is called so among a job's artifacts."""
        work = self.shop.begin()
        guard = WorkGuard(self.shop.folder, threading.Event(), time.monotonic() + 60, "too slow")
        try:
            shutil.copyfile(source, work / "fetched")
            return convert(work / "fetched", name, self.target, ConvertLimits(most, kept), guard)
        finally:
            self.shop.end(work)

    def refuses(self, source: Path, name: str = "sandbox.qcow2", **limits: int) -> str:
        with pytest.raises(PipelineImageRefused) as refused:
            self.take(source, name, **limits)
        assert self.traces() == []
        return str(refused.value)

    def traces(self) -> list[str]:
        """Every file in the folder of images."""
        found = (path for path in self.shop.folder.rglob("*") if path.name not in ("work", MARKER))
        return [str(path.relative_to(self.shop.folder)) for path in found]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def made(disk: Path, folder: Path, *options: str) -> Path:
    path = folder / "job.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, disk, path)
    return path


def changed(path: Path, offset: int, form: str, value: int) -> Path:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(form, value))
    return path


def number(path: Path, offset: int) -> int:
    with path.open("rb") as file:
        file.seek(offset)
        return int.from_bytes(file.read(8), "big")


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-c",),
        ("-c", "-o", "compression_type=zstd"),
        ("-o", "extended_l2=on,cluster_size=128k"),
        ("-o", "compat=0.10"),
        ("-o", "cluster_size=4k"),
        ("-o", "cluster_size=2M"),
        ("-o", "preallocation=metadata"),
        ("-o", "preallocation=falloc,cluster_size=2M"),
        ("-c", "-o", "cluster_size=4k"),
        ("-c", "-o", "compression_type=zstd,cluster_size=2M"),
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_every_usual_qcow2_becomes_a_fresh_one_with_the_same_disk(
    bench: Bench, disk: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    found = bench.take(made(disk, tmp_path, *options))
    assert found.virtual_bytes == 16 * MIB
    qemu_img("compare", "-f", "qcow2", "-F", "raw", bench.target, disk)
    assert bench.traces() == [bench.target.name]
    state = bench.target.stat()
    assert (state.st_mode & 0o777, state.st_uid) == (0o644, os.geteuid())
    assert bench.shop.folder.stat().st_mode & 0o777 == 0o711


@pytest.mark.parametrize(
    "options",
    [(), ("-o", "cluster_size=2M"), ("-o", "preallocation=full"), ("-o", "extended_l2=on"), ("-c",)],
    ids=lambda options: " ".join(options) or "plain",
)
def test_a_disk_that_ends_within_a_cluster_is_taken(bench: Bench, tmp_path: Path, options: tuple[str, ...]) -> None:
    odd = tmp_path / "odd.raw"
    odd.write_bytes(os.urandom(5 * MIB + 512))
    bench.take(made(odd, tmp_path, *options))
    qemu_img("compare", "-f", "qcow2", "-F", "raw", bench.target, odd)


def test_a_disk_of_one_byte_over_and_over_packs_tightly_and_is_taken(bench: Bench, tmp_path: Path) -> None:
    same = tmp_path / "same.raw"
    same.write_bytes(b"\x01" * (8 * MIB))
    for kind, size in (("zlib", "4k"), ("zstd", "4k"), ("zlib", "2M"), ("zstd", "2M")):
        bench.take(made(same, tmp_path, "-c", "-o", f"compression_type={kind},cluster_size={size}"))
        qemu_img("compare", "-f", "qcow2", "-F", "raw", bench.target, same)


@pytest.mark.parametrize(("end", "program"), [(".gz", "gzip"), (".xz", "xz"), (".zst", "zstd")])
def test_a_compressed_disk_is_unpacked_with_its_holes(
    bench: Bench, disk: Path, tmp_path: Path, end: str, program: str
) -> None:
    packed = tmp_path / f"disk{end}"
    with packed.open("wb") as file:
        subprocess.run([program, "-0c" if end == ".xz" else "-1c", disk], check=True, stdout=file)
    bench.take(packed, f"out/disk.raw{end}")
    qemu_img("compare", "-f", "qcow2", "-F", "raw", bench.target, disk)
    assert bench.take(packed, f"out/disk.raw{end}").bytes < 8 * MIB


def test_a_compressed_qcow2_is_taken_as_what_it_is(bench: Bench, disk: Path, tmp_path: Path) -> None:
    packed = tmp_path / "image.qcow2.gz"
    packed.write_bytes(gzip.compress(made(disk, tmp_path).read_bytes(), 1))
    bench.take(packed, packed.name)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", bench.target, disk)


def test_snapshots_inside_are_dropped(bench: Bench, disk: Path, tmp_path: Path) -> None:
    image = made(disk, tmp_path)
    qemu_img("snapshot", "-c", "before", image)
    bench.take(image)
    assert number(bench.target, 60) >> 32 == 0  # nb_snapshots


def backed(disk: Path, folder: Path) -> Path:
    qemu_img("create", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", folder / "job.qcow2", "16M")
    return folder / "job.qcow2"


def with_data_file(disk: Path, folder: Path) -> Path:
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={folder}/data.raw", folder / "job.qcow2", "16M")
    return folder / "job.qcow2"


def encrypted(disk: Path, folder: Path) -> Path:
    return changed(made(disk, folder), 32, ">I", 2)  # LUKS


def cut_off(disk: Path, folder: Path) -> Path:
    image = made(disk, folder)
    os.truncate(image, image.stat().st_size - MIB // 2)
    return image


def cut_off_within_the_last_cluster(disk: Path, folder: Path) -> Path:
    full = folder / "full.raw"
    full.write_bytes(os.urandom(4 * MIB))
    image = made(full, folder, "-o", "cluster_size=2M")
    os.truncate(image, image.stat().st_size - 2 * MIB + 512)
    return image


def cut_off_and_compressed(disk: Path, folder: Path) -> Path:
    image = made(disk, folder, "-c")
    os.truncate(image, image.stat().st_size - MIB // 2)
    return image


def too_large(disk: Path, folder: Path) -> Path:
    qemu_img("create", "-f", "qcow2", folder / "job.qcow2", "65M")
    return folder / "job.qcow2"


def endless(disk: Path, folder: Path) -> Path:
    return changed(made(disk, folder), 24, ">Q", 2**63 - 1)


def many_tables(disk: Path, folder: Path) -> Path:
    return changed(made(disk, folder), 36, ">I", 2**25 // 8)


def many_refcounts(disk: Path, folder: Path) -> Path:
    return changed(made(disk, folder), 56, ">I", 2**20)


def tiny_clusters(disk: Path, folder: Path) -> Path:
    return made(disk, folder, "-o", "cluster_size=512")


def one_place_for_all(disk: Path, folder: Path) -> Path:
    """Every part of the disk is the same cluster: a small file that unpacks to any size."""
    image = made(disk, folder)
    table = number(image, number(image, 40)) & ((1 << 56) - 512)
    first = number(image, table)
    for at in range(100):
        changed(image, table + 8 * at, ">Q", first)
    return image


def one_compressed_place_for_all(disk: Path, folder: Path) -> Path:
    one = folder / "one.raw"
    with one.open("wb") as file:
        file.write(b"bomb" * 16384)
        file.truncate(32 * MIB)
    image = made(one, folder, "-c")
    table = number(image, number(image, 40)) & ((1 << 56) - 512)
    first = number(image, table)
    for at in range(512):
        changed(image, table + 8 * at, ">Q", first)
    return image


def many_compressed_places_in_one_sector(disk: Path, folder: Path) -> Path:
    image = one_compressed_place_for_all(disk, folder)
    table = number(image, number(image, 40)) & ((1 << 56) - 512)
    for at in range(512):
        changed(image, table + 8 * at, ">Q", number(image, table) // 512 * 512 + at)
    return image


def corrupt(disk: Path, folder: Path) -> Path:
    return changed(made(disk, folder), 72, ">Q", 2)


def unknown_feature(disk: Path, folder: Path) -> Path:
    return changed(made(disk, folder), 72, ">Q", 1 << 40)


def raw(disk: Path, folder: Path) -> Path:
    return disk


def nothing(disk: Path, folder: Path) -> Path:
    (folder / "job").touch()
    return folder / "job"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (backed, "it has a backing file"),
        (with_data_file, "it has an external data file"),
        (encrypted, "it is encrypted"),
        (cut_off, "it is cut off or damaged"),
        (cut_off_within_the_last_cluster, "it is cut off or damaged"),
        (cut_off_and_compressed, "it is cut off or damaged"),
        (too_large, "its disk has 65 MiB, and may have 64 MiB"),
        (endless, "and may have 64 MiB"),
        (many_tables, "its tables do not fit its size"),
        (many_refcounts, "it has more tables or snapshots than an image needs"),
        (tiny_clusters, "its clusters are smaller than 4 KiB"),
        (one_place_for_all, "parts of its disk share one place"),
        (one_compressed_place_for_all, "parts of its disk share one place"),
        (many_compressed_places_in_one_sector, "parts of its disk share one place"),
        (corrupt, "it is marked as corrupt"),
        (unknown_feature, "it uses features of qcow2 that are not known"),
        (raw, "sandbox.qcow2 is no qcow2 file"),
        (nothing, "sandbox.qcow2 is no qcow2 file"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_what_is_no_plain_image_is_refused_and_leaves_no_trace(
    bench: Bench, disk: Path, tmp_path: Path, make: Callable[[Path, Path], Path], says: str
) -> None:
    assert says in bench.refuses(make(disk, tmp_path))


def test_a_compressed_disk_is_refused_that_unpacks_to_more_than_a_disk_may_have(bench: Bench, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(bytes(MOST + 1), 6))
    assert bomb.stat().st_size < 100_000
    assert "its disk has more than the 64 MiB that it may have" in bench.refuses(bomb, "bomb.gz")


def test_a_compressed_disk_that_is_cut_off_or_something_else_is_refused(
    bench: Bench, disk: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "disk.gz"
    packed.write_bytes(gzip.compress(disk.read_bytes(), 1)[:-1000])
    assert "gzip can't read it (gzip: stdin: unexpected end of file)" in bench.refuses(packed, "disk.gz")
    assert "gzip can't read it" in bench.refuses(disk, "disk.gz")
    packed.write_bytes(gzip.compress(b""))
    assert "there is no disk in it" in bench.refuses(packed, "disk.gz")


def test_a_qcow2_that_unpacks_to_more_than_is_kept_is_refused(bench: Bench, tmp_path: Path) -> None:
    full, image = tmp_path / "full", tmp_path / "full.qcow2"
    full.write_bytes(b"\x01" * (32 * MIB))
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", full, image)
    assert image.stat().st_size < MIB
    assert "it becomes larger than it may be when it is unpacked" in bench.refuses(image, kept=8 * MIB)


def test_a_host_without_room_is_not_blamed_on_the_image(disk: Path, tmp_path: Path) -> None:
    shop = ImageWorkshop(tmp_path / "images")
    shop.prepare(())
    work = shop.begin()
    shutil.copyfile(made(disk, tmp_path), work / "fetched")
    with pytest.raises(HostDiskShort, match=r"short of disk for the image: it needs more than the 512 KiB") as short:
        convert(
            work / "fetched", "i.qcow2", shop.name(7, "a"), ConvertLimits(TIB, TIB), lambda: None, lambda _: MIB // 2
        )
    assert short.value.lacking < 1024 * MIB  # of what this disk may take, not the largest one
    cage.give(tmp_path)
    full = ["sh", "-c", "echo 'qemu-img: error while writing: No space left on device' >&2; exit 1"]
    with pytest.raises(HostDiskShort):
        cage.run(full, tmp_path, cage.CageLimits(5, 256 * MIB, MIB), lambda: None, lambda _: None)


def test_the_look_into_large_tables_asks_now_and_then_whether_to_go_on(disk: Path, tmp_path: Path) -> None:
    asked: list[int] = []
    with made(disk, tmp_path, "-o", "cluster_size=4k").open("rb") as file:
        look_into(file.fileno(), MOST, lambda: asked.append(1))
    assert len(asked) == 16 * MIB // (4096 * 512)


def test_work_ends_at_once_when_ravebot_stops_when_it_takes_too_long_and_when_the_disk_fills_up(
    bench: Bench, disk: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "disk.gz"
    packed.write_bytes(gzip.compress(disk.read_bytes(), 1))
    stopping = threading.Event()
    stopping.set()
    late = time.monotonic() - 1
    for guard, error in (
        (WorkGuard(tmp_path, stopping, time.monotonic() + 60, ""), Abandoned),
        (WorkGuard(tmp_path, threading.Event(), late, "it took too long"), PipelineImageRefused),
        (full_host, Unavailable),
    ):
        with pytest.raises(error):
            unpack(packed, ".gz", tmp_path / "unpacked", MOST, guard)
    assert ended_programs(tmp_path)


def test_an_image_that_leaves_the_host_too_little_disk_is_not_begun(tmp_path: Path) -> None:
    guard = WorkGuard(tmp_path, threading.Event(), time.monotonic() + 60, "")
    guard()
    with pytest.raises(Unavailable, match="the host of the sandboxes is short of disk for the image"):
        guard.needs(1024**5)


def full_host() -> None:
    raise Unavailable("the host of the sandboxes is short of disk")


def ended_programs(folder: Path) -> bool:
    """Whether no program works in that folder."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder:
                return False
        except OSError:
            continue
    return True


def test_a_program_in_the_cage_is_limited_powerless_and_without_network(tmp_path: Path) -> None:
    limits = cage.CageLimits(cpu_seconds=7, memory_bytes=256 * MIB, file_bytes=MIB)
    printed: list[bytes] = []
    closed = cage.closes()  # then /proc is, too, and the next test looks at the network
    look = "ulimit -t; ulimit -v; ulimit -f; id -u; setpriv --dump"
    if not closed:
        look += "; cat /proc/self/status /proc/net/dev"
    cage.run(["sh", "-c", look], tmp_path, limits, lambda: None, printed.append)
    said = b"".join(printed).decode()
    assert said.split()[:3] == ["7", str(256 * 1024), str(MIB // 512)]
    assert "\nno_new_privs: 1\nInheritable capabilities: [none]\nAmbient capabilities: [none]\n" in said
    assert closed or re.search(r"^CapEff:\s+0+$", said, re.MULTILINE)
    if os.geteuid() == 0:
        assert said.split()[3] != "0"
        assert closed or re.findall(r"^ *(\w+):(?: +\d+){16}$", said, re.MULTILINE) == ["lo"]  # its own, which is down


@pytest.mark.skipif(not cage.closes(), reason="needs setpriv of util-linux 2.41, and Landlock in the kernel")
def test_a_program_in_the_cage_opens_only_its_own_folder_and_no_socket(tmp_path: Path) -> None:
    here, beside = tmp_path / "here", tmp_path / "beside"
    for folder in (tmp_path, here, beside):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    cage.give(here)
    (beside / "secret").write_text("secret")
    (beside / "secret").chmod(0o644)
    (here / "own").write_text("own")
    (here / "own").chmod(0o644)
    look = (
        "import os, socket\n"
        "def said(what):\n"
        "    try:\n"
        "        what()\n"
        "        print('done')\n"
        "    except OSError as error:\n"
        "        print(error.strerror)\n"
        f"for path in ('own', {str(beside / 'secret')!r}, '/etc/passwd', '/proc/self/environ'):\n"
        "    said(lambda: open(path).read())\n"
        f"for path in ('made', {str(beside / 'made')!r}, '/tmp/made'):\n"
        "    said(lambda: open(path, 'w'))\n"
        "said(lambda: os.listdir('/'))\n"
        "for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK):\n"
        "    said(lambda: socket.socket(family))\n"
    )
    printed: list[bytes] = []
    limits = cage.CageLimits(cpu_seconds=7, memory_bytes=512 * MIB, file_bytes=MIB)
    cage.run(["/usr/bin/python3", "-c", look], here, limits, lambda: None, printed.append)
    told = b"".join(printed).decode().splitlines()
    denied, forbidden = "Permission denied", "Operation not permitted"
    assert told == ["done", *[denied] * 3, "done", *[denied] * 3, *[forbidden] * 4]


@pytest.mark.skipif(cage.user() is None, reason="only root has programs run as another user")
def test_whether_there_can_be_a_cage_without_network_is_tried_as_the_user_that_it_is_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ubuntu lets root make user namespaces, and nobody else."""
    cage.give(tmp_path)
    with tempfile.TemporaryDirectory() as tools:
        Path(tools).chmod(0o755)
        fussy = Path(tools) / "unshare"
        fussy.write_text(f'#!/bin/sh\n[ "$(id -u)" = 0 ] || exit 1\nexec {shutil.which("unshare")} "$@"\n')
        fussy.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        cage.apart.cache_clear()
        try:
            cage.run(["true"], tmp_path, cage.CageLimits(5, 256 * MIB, MIB), lambda: None, lambda _: None)
            assert cage.apart() == ()
        finally:
            cage.apart.cache_clear()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exec head -c 2M /dev/zero >large", "larger than it may be"),
        ("while :; do :; done", "took more time over it"),
        ("kill -KILL $$", "took more time or memory over it"),
        ("kill -SEGV $$", "sh broke over it (SIGSEGV)"),
        ("echo no such thing >&2; exit 1", "sh can't read it (no such thing)"),
    ],
)
def test_what_a_program_in_the_cage_does_wrong_is_said_in_plain_words(tmp_path: Path, script: str, says: str) -> None:
    cage.give(tmp_path)
    limits = cage.CageLimits(cpu_seconds=1, memory_bytes=256 * MIB, file_bytes=MIB)
    with pytest.raises(RavebotError, match=says.replace("(", r"\(").replace(")", r"\)")):
        cage.run(["sh", "-c", script], tmp_path, limits, lambda: None, lambda _: None)


def test_leftovers_of_an_earlier_process_are_removed_and_what_is_known_stays(bench: Bench) -> None:
    known = bench.shop.name(7, "b" * 64)
    known.write_bytes(b"an image")
    bench.target.write_bytes(b"half an image that nobody knows")
    (bench.shop.begin() / "fetched").write_bytes(b"half a download")
    lost = str(bench.shop.name(8, "c" * 64))
    assert bench.shop.prepare([str(known), lost]) == {lost}
    assert bench.traces() == [known.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give rights away")
def test_where_ravebot_is_root_that_may_not_change_users_no_program_reads_an_image() -> None:
    """Such a program would keep root's capability, as in a unit that runs as root with CAP_NET_ADMIN."""
    code = (
        "from pathlib import Path\n"
        "from ravebot.errors import Unavailable\n"
        "from ravebot.images.pipelines import cage\n"
        "try:\n"
        "    cage.run(['true'], Path('/'), cage.CageLimits(5, 2**30, 2**20), lambda: None, print)\n"
        "except Unavailable as error:\n"
        "    print(error)\n"
    )
    as_in_the_unit = ["setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all"]
    said = {
        words: subprocess.run([*words, sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for words in ((), tuple(as_in_the_unit))
    }
    assert said[()] == ""
    assert said[tuple(as_in_the_unit)].startswith(
        "images of pipelines need ravebot to run as a user of its own: it is root here without the right to change"
    )
