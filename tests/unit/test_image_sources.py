"""The image's packages come from Debian's own archives among the host's sources, and no login gets into the image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from ravebot.errors import RavebotError
from ravebot.images import sources

DEBIAN = "http://mirror.example/debian"
SECURITY = "http://mirror.example/debian-security"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def etc(folder: Path, files: Mapping[str, str]) -> Path:
    """An /etc/apt with these files."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def lines(folder: Path, suite: str = "bookworm", codename: str = "bookworm") -> list[str]:
    return sources.read(suite, codename, folder).for_build(folder).splitlines()


def test_one_line_sources_are_read(tmp_path: Path) -> None:
    text = f"""\
# a comment
deb {DEBIAN} bookworm main contrib # and its reason
deb-src {DEBIAN} bookworm main
deb [arch=amd64,i386 signed-by={KEYRING}] {DEBIAN}/ bookworm-updates main
deb [ arch=arm64 ] {DEBIAN} bookworm main non-free
deb {SECURITY} bookworm-security main
deb {DEBIAN} bookworm-backports main
deb cdrom:[Debian 12]/ bookworm main
deb {DEBIAN} ./
"""
    assert lines(etc(tmp_path, {"sources.list": text})) == [
        f"deb {DEBIAN} bookworm main contrib",
        f"deb [signed-by={KEYRING}] {DEBIAN}/ bookworm-updates main",
        f"deb {SECURITY} bookworm-security main",
    ]


def test_deb822_sources_are_read(tmp_path: Path) -> None:
    text = f"""\
Types: deb deb-src
# a comment in a paragraph
URIs: {DEBIAN}
Suites: bookworm bookworm-updates
  bookworm-backports
Components: main
Signed-By: {KEYRING}

enabled: no
Types: deb
URIs: http://other.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: {SECURITY}
Suites: bookworm-security
Components: main
"""
    assert lines(etc(tmp_path, {"sources.list.d/debian.sources": text})) == [
        f"deb [signed-by={KEYRING}] {DEBIAN} bookworm main",
        f"deb [signed-by={KEYRING}] {DEBIAN} bookworm-updates main",
        f"deb {SECURITY} bookworm-security main",
    ]


def test_another_suite_has_the_same_archives(tmp_path: Path) -> None:
    text = f"deb {DEBIAN} bookworm main\ndeb {DEBIAN} stable-updates main\ndeb {SECURITY} bookworm-security main\n"
    assert lines(etc(tmp_path, {"sources.list": text}), "trixie") == [
        f"deb {DEBIAN} trixie main",
        f"deb {DEBIAN} trixie-updates main",
        f"deb {SECURITY} trixie-security main",
    ]


def test_the_archives_of_others_are_left_alone(tmp_path: Path) -> None:
    text = f"""\
deb {DEBIAN} bookworm main
deb [signed-by=/etc/apt/keyrings/docker.asc] https://download.example/linux/debian bookworm stable
deb https://packages.example/php bookworm main
deb [signed-by=/etc/apt/keyrings/chart.gpg] https://apt.example stable main
deb https://database.example/apt bookworm-db main
"""
    assert lines(etc(tmp_path, {"sources.list": text})) == [f"deb {DEBIAN} bookworm main"]


def test_a_host_without_debians_sources_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(RavebotError, match="no package source of Debian's bookworm was found"):
        lines(etc(tmp_path, {"sources.list": "deb https://packages.example/php bookworm main\n"}))


def test_a_list_of_mirrors_is_followed(tmp_path: Path) -> None:
    mirrors = tmp_path / "mirrors"
    mirrors.write_text(f"# the nearest\n{DEBIAN}\tpriority:1\nhttps://second.example/debian\n")
    text = f"Types: deb\nURIs: mirror+file://{mirrors}\nSuites: bookworm\nComponents: main\nSigned-By: {KEYRING}\n"
    assert lines(etc(tmp_path, {"sources.list.d/debian.sources": text})) == [
        f"deb [signed-by={KEYRING}] {DEBIAN} bookworm main"
    ]


def test_logins_are_used_for_the_build_and_kept_out_of_the_image(tmp_path: Path) -> None:
    text = f"""\
deb https://mirror.example/debian bookworm main
deb https://person:hush@second.example/debian bookworm-updates main
deb {SECURITY}/ bookworm-security main
"""
    logins = """\
machine mirror.example/debian/ login person
  password hush-hush
# machine mirror.example login old password old
machine else.example login person password hush
"""
    folder = etc(tmp_path, {"sources.list": text, "auth.conf.d/mirror.conf": logins})
    found = sources.read("bookworm", "bookworm", folder)
    assert found.logins == "machine mirror.example/debian/ login person password hush-hush\n"
    assert "person:hush@second.example" in found.for_build(folder)
    image = found.for_image()
    assert image.count("Types: deb") == 1
    assert f"URIs: {SECURITY}/\nSuites: bookworm-security\nComponents: main\nSigned-By: {KEYRING}\n" in image
    assert image.startswith("# Left out, because they need a login or a key of the builder's host: 2\n\n")
    assert "hush" not in image
    assert "person" not in image


def test_a_key_in_the_source_itself_is_used_for_the_build_only(tmp_path: Path) -> None:
    text = f"""\
Types: deb
URIs: {DEBIAN}
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEZ
 -----END PGP PUBLIC KEY BLOCK-----
"""
    folder = etc(tmp_path, {"sources.list.d/debian.sources": text})
    found = sources.read("bookworm", "bookworm", folder)
    assert found.for_build(folder) == f"deb [signed-by={folder}/source-0.asc] {DEBIAN} bookworm main\n"
    key = (folder / "source-0.asc").read_text()
    assert key == "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDMEZ\n-----END PGP PUBLIC KEY BLOCK-----"
    assert "Types" not in found.for_image()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sources.list", f"deb [trusted=yes] {DEBIAN} bookworm main\n"),
        (
            "sources.list.d/debian.sources",
            f"Types: deb\nURIs: {DEBIAN}\nSuites: bookworm\nComponents: main\nTrusted: yes\n",
        ),
    ],
)
def test_a_source_that_the_host_trusts_without_a_signature_is_used_for_the_build_only(
    tmp_path: Path, name: str, text: str
) -> None:
    folder = etc(tmp_path, {name: text})
    found = sources.read("bookworm", "bookworm", folder)
    assert found.for_build(folder) == f"deb [trusted=yes] {DEBIAN} bookworm main\n"
    assert "Types" not in found.for_image()


def test_older_forms_of_debian_s_own_archives_are_read_and_no_other_s(tmp_path: Path) -> None:
    text = """\
deb http://security.example bookworm-security main
deb [check-valid-until=no] http://snapshot.example/archive/debian/20260101T000000Z/ bookworm main
deb https://apt.maker.example bookworm main
"""
    assert lines(etc(tmp_path, {"sources.list": text})) == [
        "deb http://security.example bookworm-security main",
        "deb [check-valid-until=no] http://snapshot.example/archive/debian/20260101T000000Z/ bookworm main",
    ]


def test_an_address_with_a_token_stays_out_of_the_image(tmp_path: Path) -> None:
    text = f"deb {DEBIAN}?token=secret bookworm main\ndeb {SECURITY} bookworm-security main\n"
    found = sources.read("bookworm", "bookworm", etc(tmp_path, {"sources.list": text}))
    assert "secret" in found.for_build(tmp_path)
    assert "secret" not in found.for_image()
    assert SECURITY in found.for_image()
