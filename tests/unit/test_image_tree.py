"""An image's file tree: its packages, its digest, and what is taken out of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ravebot.images import tree

STATUS = """\
Package: zsh
Status: install ok installed
Maintainer: Nobody <nobody@example.org>
Architecture: amd64
Version: 5.9-4+b2
Description: a shell
 Package: false

Package: gone
Status: deinstall ok config-files
Maintainer: Nobody <nobody@example.org>
Architecture: amd64
Version: 1.0
Description: removed, but for its settings

Package: git
Status: install ok installed
Maintainer: Nobody <nobody@example.org>
Architecture: amd64
Version: 1:2.39.5-0
Description: what Debian's epoch is for
"""


async def test_installed_packages_are_listed_by_name_with_their_versions(tmp_path: Path) -> None:
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(STATUS)
    found = await tree.packages(tmp_path, os.environ)
    assert list(found.items()) == [("git", "1:2.39.5-0"), ("zsh", "5.9-4+b2")]


def test_what_belongs_to_one_machine_or_to_the_build_is_taken_out(tmp_path: Path) -> None:
    for name in ("etc/ssh/ssh_host_ed25519_key", "etc/machine-id", "var/log/apt/term.log", "etc/apt/auth.conf.d/x"):
        tree.write(tmp_path, name, "the host's")
    tree.write(tmp_path, "etc/ssh/sshd_config", "kept")
    tree.tidy(tmp_path, "Types: deb\n")
    left = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        "etc/apt/sources.list.d/debian.sources": "Types: deb\n",
        "etc/machine-id": "",
        "etc/resolv.conf": "",
        "etc/ssh/sshd_config": "kept",
    }


def test_a_link_in_the_tree_does_not_lead_a_file_to_the_host(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.write_text("the host's")
    (root / "etc").mkdir(parents=True)
    (root / "etc/resolv.conf").symlink_to(outside)
    tree.write(root, "etc/resolv.conf", "")
    assert outside.read_text() == "the host's"
    assert not (root / "etc/resolv.conf").is_symlink()


def test_a_tree_s_digest_tells_content_mode_and_target_and_no_times(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file, link = tmp_path / "a/file", tmp_path / "link"
    file.write_text("one")
    link.symlink_to("a/file")
    digests = [tree.digest(tmp_path)]
    os.utime(file, (1, 1))
    assert tree.digest(tmp_path) == digests[0]
    file.write_text("two")
    digests.append(tree.digest(tmp_path))
    file.chmod(0o600)
    digests.append(tree.digest(tmp_path))
    link.unlink()
    link.symlink_to("elsewhere")
    digests.append(tree.digest(tmp_path))
    file.rename(tmp_path / "a/other")
    digests.append(tree.digest(tmp_path))
    assert len(set(digests)) == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change a file's owner")
def test_a_tree_s_digest_tells_owners(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    before = tree.digest(tmp_path)
    os.chown(tmp_path / "a", 1000, 1000)
    assert tree.digest(tmp_path) != before
