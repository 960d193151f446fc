"""What machines are called."""

from __future__ import annotations

import re
import uuid
from fnmatch import fnmatchcase

from hypothesis import given
from hypothesis import strategies as st

from ravebot.sandboxes.naming import names, pattern


@given(random=st.binary(min_size=16, max_size=16))
def test_every_name_has_the_form_its_reader_wants(random: bytes) -> None:
    found = names("main", random)
    assert re.fullmatch(r"rave-main-[0-9a-f]{10}", found.name)
    assert uuid.UUID(found.uuid).version == 4
    assert re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", found.mac)
    assert re.fullmatch(r"rv[0-9a-f]{10}", found.tap)
    assert len(found.tap) <= 15  # what Linux allows


@given(pair=st.lists(st.binary(min_size=16, max_size=16), min_size=2, max_size=2, unique=True))
def test_other_randomness_gives_other_names_throughout(pair: list[bytes]) -> None:
    one, other = (names("main", random) for random in pair)
    assert one.name != other.name
    assert one.uuid != other.uuid
    assert one.tap != other.tap


def test_the_instance_is_in_the_name_and_changes_nothing_else() -> None:
    one, other = names("main", bytes(16)), names("test", bytes(16))
    assert (one.name, other.name) == ("rave-main-374708fff7", "rave-test-374708fff7")
    assert (one.uuid, one.mac, one.tap) == (other.uuid, other.mac, other.tap)


@given(random=st.binary(min_size=16, max_size=16))
def test_the_pattern_is_that_of_the_instances_own_machines_only(random: bytes) -> None:
    assert fnmatchcase(names("main", random).name, pattern("main"))
    for other in ("mai", "main-2", "main-0123456789", "test"):
        assert not fnmatchcase(names(other, random).name, pattern("main"))
