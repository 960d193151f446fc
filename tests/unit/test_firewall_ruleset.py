"""From rules to nftables elements, and the static part's form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ravebot.access.nftables import snapshot
from ravebot.access.nftables.counts import Count, Visitor
from ravebot.access.nftables.firewall import NftFirewall
from ravebot.access.nftables.ruleset import FAMILIES, GUESTS, LIVE, OPENED, PORTS, SETS, SSH_PORTS, Ruleset, elements
from ravebot.access.nftables.ruleset import element_commands as commands_for
from ravebot.access.rules import Forward, Guest, Rules, Service
from ravebot.clock import SystemClock
from ravebot.config.model import AccessConfig, BridgeConfig, SandboxConfig

RULES = Rules(
    guests=frozenset([Guest("rv1", "52:54:00:00:00:02", "10.80.0.2")]),
    forwards=frozenset([Forward(Service.SSH, 2200, "10.80.0.2", 22), Forward(Service.WEB, 3000, "10.80.0.2", 3002)]),
)


def ruleset(access: dict[str, Any] | None = None, **sandbox: Any) -> Ruleset:
    return Ruleset(
        "ravebot-x",
        BridgeConfig(),
        SandboxConfig.model_validate({"host": "h", **sandbox}),
        AccessConfig.model_validate(access or {}),
    )


def rules_in(written: list[dict[str, Any]], chain: str) -> list[str]:
    added = [command["add"]["rule"] for command in written if "rule" in command.get("add", {})]
    return [json.dumps(rule["expr"]) for rule in added if rule["chain"] == chain]


def test_rules_become_elements_of_every_set() -> None:
    made = elements(RULES)
    assert made[OPENED] == {(2200, "10.80.0.2", 22), (3000, "10.80.0.2", 3002)}
    assert made[PORTS] == {(2200, 22), (3000, 3002)}
    assert made[SSH_PORTS] == {(2200,)}
    assert made[GUESTS] == {("rv1", "52:54:00:00:00:02", "10.80.0.2")}
    assert set(made) == set(SETS)
    assert not any(elements(Rules()).values())


def test_elements_are_written_as_nft_reads_them_and_empty_changes_write_nothing() -> None:
    opened = commands_for("add", "t", {OPENED: frozenset([(2200, "10.80.0.2", 22)]), LIVE: frozenset()})
    element: dict[str, object] = {
        "family": "inet",
        "table": "t",
        "name": "opened",
        "elem": [{"concat": [2200, "10.80.0.2", 22]}],
    }
    assert opened == [{"add": {"element": element}}]
    closed = commands_for("delete", "t", {PORTS: frozenset([(2200, 22)])})
    written = [[2200, 22]]
    element = {"family": "inet", "table": "t", "name": "ports", "elem": written}
    assert closed == [{"delete": {"element": element}}]


def test_each_family_is_deleted_and_written_in_one_list() -> None:
    written = ruleset().write()
    for family in FAMILIES:
        table = {"table": {"family": family, "name": "ravebot-x"}}
        assert [next(iter(command)) for command in written if table in command.values()] == ["add", "delete", "add"]


def test_only_allow_from_adds_rules_about_who_may_come_of_which_two_count() -> None:
    open_to_all = rules_in(ruleset().write(), "to_guest")
    limited = rules_in(ruleset({"allow_from": ["192.0.2.0/24", "192.0.2.128/25"]}).write(), "to_guest")
    assert len(limited) == len(open_to_all) + 3
    assert all('"addr": "192.0.2.0", "len": 24' in rule for rule in limited if rule not in open_to_all)
    assert not any("192.0.2.128" in rule for rule in limited), "networks inside others are folded"


def test_egress_none_takes_dns_and_the_way_out_away() -> None:
    with_egress, without = ruleset().write(), ruleset(egress="none").write()
    assert [rule for rule in rules_in(with_egress, "to_host") if '"right": 53' in rule]
    assert not [rule for rule in rules_in(without, "to_host") if '"right": 53' in rule]
    assert "starting" in rules_in(with_egress, "from_guest")[-1]
    assert "drop" in rules_in(without, "from_guest")[-1]


@pytest.mark.parametrize(("entry", "count"), [("10.0.5.0/24:443", 2), ("10.0.5.7", 1)])
def test_an_allowed_destination_is_marked_for_tcp_and_udp_or_whole(entry: str, count: int) -> None:
    assert len(rules_in(ruleset(allow=[entry]).write(), "marking")) == 4 + count


def test_the_configured_limits_are_written() -> None:
    limits = rules_in(ruleset(connections_per_minute={"ssh": 7, "web": 77}).write(), "limits")
    assert '"rate": 7, "burst": 7, "per": "minute"' in limits[0]
    assert '"rate": 77, "burst": 77, "per": "minute"' in limits[1]


def test_a_listing_is_read_back_as_what_was_written() -> None:
    def table(name: str, kind: str, elem: list[object]) -> dict[str, object]:
        return {kind: {"family": "inet", "table": "t", "name": name, "handle": 5, "elem": elem}}

    counted = {"val": {"concat": ["192.0.2.7", 2200]}, "expires": 3590, "counter": {"packets": 2, "bytes": 120}}
    told = {"val": {"concat": ["192.0.2.7", 2200]}, "comment": "1 0 60"}
    found = snapshot.read(
        {
            "inet": [
                table("opened", "set", [{"concat": [2200, "10.80.0.2", 22]}]),
                table("ports", "map", [[2200, 22], [{"elem": {"val": 2201, "comment": "by hand"}}, 22]]),
                table("seen", "set", [{"elem": counted}]),
                table("told", "set", [{"elem": told}]),
            ],
            "bridge": None,
        }
    )
    assert found.elements[OPENED] == {(2200, "10.80.0.2", 22)}
    assert found.elements[PORTS] == {(2200, 22), (2201, 22)}
    assert found.elements[GUESTS] == frozenset()
    assert found.seen == {Visitor("192.0.2.7", 2200): Count(2, 120, 3590)}
    assert found.told == {Visitor("192.0.2.7", 2200): "1 0 60"}
    assert set(found.forms) == {"inet"}
    assert found.forms["inet"][0] == {"set": {"family": "inet", "table": "t", "name": "opened"}}


def test_a_set_of_another_shape_is_read_as_empty() -> None:
    listed: dict[str, object] = {"set": {"family": "inet", "table": "t", "name": "opened", "elem": [7]}}
    assert snapshot.read({"inet": [listed]}).elements == {}


@pytest.mark.parametrize("name", ["", "a b", "x; flush ruleset", "-x", "x" * 65])
def test_an_instance_id_that_is_no_table_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="instance id"):
        NftFirewall(
            instance_id=name,
            bridge=BridgeConfig(),
            sandbox=SandboxConfig(host="h"),
            access=AccessConfig(),
            clock=SystemClock(),
        )
