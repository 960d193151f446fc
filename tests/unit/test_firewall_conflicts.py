"""Others' chains that would drop what we accept, found by reading the ruleset."""

from __future__ import annotations

from typing import Any

import pytest

from ravebot.access.nftables.conflicts import conflicts

ACCEPT: dict[str, Any] = {"accept": None}
DROP: dict[str, Any] = {"drop": None}


def chain(
    name: str, hook: str = "", policy: str = "accept", table: str = "filter", family: str = "ip"
) -> dict[str, Any]:
    body = {"family": family, "table": table, "name": name}
    return {"chain": body | ({"type": "filter", "hook": hook, "prio": 0, "policy": policy} if hook else {})}


def rule(chain: str, *expr: dict[str, Any], table: str = "filter", family: str = "ip") -> dict[str, Any]:
    return {"rule": {"family": family, "table": table, "chain": chain, "expr": list(expr)}}


def where(left: dict[str, Any], right: object, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def interface(key: str, name: str, op: str = "==") -> dict[str, Any]:
    return where({"meta": {"key": key}}, name, op)


def jump(target: str) -> dict[str, Any]:
    return {"jump": {"target": target}}


ESTABLISHED = where({"ct": {"key": "state"}}, ["established", "related"], "in")
DOCKER = [
    chain("FORWARD", "forward", "drop"),
    chain("DOCKER-USER"),
    chain("DOCKER-FORWARD"),
    rule("FORWARD", {"counter": {"packets": 1, "bytes": 2}}, jump("DOCKER-USER")),
    rule("FORWARD", jump("DOCKER-FORWARD")),
    rule("DOCKER-FORWARD", interface("oifname", "docker0"), {"xt": None}, ACCEPT),
    rule("DOCKER-FORWARD", interface("iifname", "docker0"), ACCEPT),
]


def found(*listed: dict[str, Any], egress: bool = True) -> list[str]:
    return conflicts(
        list(listed),
        own_table="ravebot-x",
        bridge="rb0",
        egress=egress,
        ports=(range(2200, 2300), range(3000, 3100)),
        guest_ports=(22, 3002),
        uplinks=("eth0",),
    )


VISITS, OWN, EGRESS = "connections to the sandboxes", "the host's own connections", "the sandboxes' way to the internet"
DHCP, DNS = "the sandboxes' DHCP", "the sandboxes' DNS"


def dropped(*listed: dict[str, Any]) -> set[str]:
    """What kinds of traffic are said to be dropped."""
    lines = found(*listed)
    return {what for what in (VISITS, OWN, EGRESS, DHCP, DNS) if any(f"drops {what}" in line for line in lines)}


def test_an_empty_ruleset_and_our_own_table_are_no_conflict() -> None:
    assert found() == []
    assert found(chain("forwarding", "forward", "drop", table="ravebot-x", family="inet")) == []


@pytest.mark.parametrize("bridge", ["rb0", "rb9"])
def test_no_rule_is_ever_proposed_for_a_table_of_ravebots(bridge: str) -> None:
    theirs = [
        entry
        for family in ("ip", "inet", "bridge", "arp")
        for entry in (
            chain("c", "forward", "drop", table="ravebot-other", family=family),
            rule("c", interface("iifname", bridge), DROP, table="ravebot-other", family=family),
        )
    ]
    assert not [line for line in found(*theirs) if "nft" in line]


def test_another_instance_on_our_bridge_is_told_with_the_command_that_removes_it() -> None:
    theirs = rule("forwarding", interface("iifname", "rb0"), DROP, table="ravebot-old1", family="inet")
    ours = rule("forwarding", interface("iifname", "rb0"), DROP, table="ravebot-x", family="inet")
    (line,) = found(ours, theirs)
    assert "instance id old1" in line
    assert line.endswith("run `ravebot cleanup --instance-id old1 --all --force`")


def test_dockers_forward_chain_is_named_with_its_own_mend() -> None:
    visits, leaving = found(*DOCKER)
    assert visits.startswith(
        "the chain ip filter FORWARD drops connections to the sandboxes: run `iptables -I DOCKER-USER"
    )
    assert "internet" in leaving


def test_it_is_quiet_once_mended() -> None:
    mended = [rule("DOCKER-USER", interface(key, "rb0"), ACCEPT) for key in ("iifname", "oifname")]
    assert found(*DOCKER, *mended) == []
    only_in = found(*DOCKER, mended[0])
    assert len(only_in) == 1
    assert "connections to the sandboxes" in only_in[0]


def test_an_accept_of_established_or_of_another_interface_does_not_help() -> None:
    drops = chain("FORWARD", "forward", "drop")
    assert len(found(drops, rule("FORWARD", ESTABLISHED, ACCEPT))) == 2
    assert len(found(drops, rule("FORWARD", interface("iifname", "eth7"), ACCEPT))) == 2
    assert found(drops, rule("FORWARD", interface("iifname", "eth0", "!="), ACCEPT)) == found(drops)[:1]
    assert found(drops, rule("FORWARD", interface("iifname", "eth0"), ACCEPT)) == found(drops)[1:]
    assert found(drops, rule("FORWARD", ACCEPT)) == []
    assert found(drops, rule("FORWARD", interface("iifname", "rb*"), ACCEPT)) == found(drops)[:1]
    assert found(drops, rule("FORWARD", where({"ct": {"key": "status"}}, "dnat", "in"), ACCEPT)) == found(drops)[1:]


def test_a_drop_by_rule_counts_only_where_it_surely_meets_us() -> None:
    accepts = chain("forward", "forward")
    assert len(found(accepts, rule("forward", {"reject": None}))) == 2
    assert len(found(accepts, rule("forward", {"xt": {"type": "target", "name": "REJECT"}}))) == 2
    assert found(accepts, rule("forward", where({"ct": {"key": "state"}}, "invalid", "in"), DROP)) == []
    assert found(accepts, rule("forward", where({"payload": {"protocol": "ip", "field": "saddr"}}, "@bad"), DROP)) == []
    assert found(accepts, rule("forward", interface("iifname", "docker0"), DROP)) == []
    assert found(accepts, rule("forward", {"limit": {"rate": 5}}, DROP)) == []


def test_a_goto_does_not_come_back_and_a_return_ends_its_chain_only() -> None:
    base, other = chain("FORWARD", "forward", "drop"), chain("other")
    to_other = rule("FORWARD", {"goto": {"target": "other"}})
    assert len(found(base, other, to_other, rule("FORWARD", ACCEPT))) == 2
    assert (
        found(base, other, rule("FORWARD", jump("other")), rule("other", {"return": None}), rule("FORWARD", ACCEPT))
        == []
    )


def test_a_chain_that_jumps_to_itself_ends() -> None:
    assert len(found(chain("FORWARD", "forward", "drop"), rule("FORWARD", jump("FORWARD")))) == 2


def test_ufw_is_told_of_dhcp_too_and_of_the_commands_that_open_it() -> None:
    ufw = [chain("ufw-user-input"), chain("INPUT", "input", "drop"), chain("FORWARD", "forward", "drop")]
    dhcp, dns, *forward = found(*ufw)
    assert dhcp.endswith("drops the sandboxes' DHCP: run `ufw allow in on rb0`")
    assert dns.endswith("drops the sandboxes' DNS: run `ufw allow in on rb0`")
    assert forward[0].endswith("run `ufw route allow in on rb0; ufw route allow out on rb0`")
    udp = where({"payload": {"protocol": "udp", "field": "dport"}}, {"set": [53, 67]})
    assert not [line for line in found(*ufw, rule("INPUT", interface("iifname", "rb0"), udp, ACCEPT)) if "DHCP" in line]


def vmap(key: dict[str, Any], **verdicts: dict[str, Any]) -> dict[str, Any]:
    return {"vmap": {"key": key, "data": {"set": [[value, verdict] for value, verdict in verdicts.items()]}}}


STATE: dict[str, Any] = {"ct": {"key": "state"}}
TCP_PORT: dict[str, Any] = {"payload": {"protocol": "tcp", "field": "dport"}}
UDP_PORT: dict[str, Any] = {"payload": {"protocol": "udp", "field": "dport"}}
EVERYTHING_NEW = vmap(STATE, established=ACCEPT, related=ACCEPT, invalid=DROP, new=DROP)


@pytest.mark.parametrize(
    ("base", "rules", "what"),
    [
        (("input", "drop"), [[where(UDP_PORT, 67), ACCEPT]], {DNS}),
        (("input", "drop"), [[where(UDP_PORT, {"set": [{"range": [50, 70]}]}), ACCEPT]], set()),
        (("input", "accept"), [[where(UDP_PORT, 53), DROP]], {DNS}),
        (("forward", "accept"), [[EVERYTHING_NEW]], {VISITS, EGRESS}),
        (("forward", "drop"), [[vmap(STATE, established=ACCEPT, new=ACCEPT)]], set()),
        (("forward", "drop"), [[vmap(STATE, established=ACCEPT, related=ACCEPT)]], {VISITS, EGRESS}),
        (("forward", "accept"), [[vmap({"meta": {"key": "iifname"}}, rb0=DROP)]], {EGRESS}),
        (("forward", "accept"), [[vmap({"meta": {"key": "iifname"}}, docker0=DROP)]], set()),
        (("forward", "accept"), [[interface("iifname", "eth0"), DROP]], {VISITS}),
        (("forward", "accept"), [[interface("iifname", "virbr0"), {"reject": None}]], set()),
        (("forward", "accept"), [[where(TCP_PORT, 3002), DROP]], {VISITS}),
        (("forward", "accept"), [[where(TCP_PORT, 3306), DROP]], set()),
        (("prerouting", "accept"), [[where(TCP_PORT, 2207), DROP]], {VISITS}),
        (("prerouting", "accept"), [[where(TCP_PORT, {"range": [1, 3010]}), DROP]], {VISITS}),
        (("prerouting", "accept"), [[where(TCP_PORT, 8080), DROP]], set()),
        (("prerouting", "drop"), [[interface("iifname", "eth0"), ACCEPT]], {EGRESS, DHCP, DNS}),
        (("output", "drop"), [[ESTABLISHED, ACCEPT]], {OWN}),
        (("output", "drop"), [[interface("oifname", "rb0"), ACCEPT]], set()),
        (("input", "drop"), [[vmap(STATE, new={"jump": {"target": "in"}})]], {DHCP, DNS}),
    ],
)
def test_a_drop_is_found_wherever_it_is_and_however_it_is_said(
    base: tuple[str, str], rules: list[list[dict[str, Any]]], what: set[str]
) -> None:
    hook, policy = base
    assert dropped(chain("base", hook, policy), chain("in"), *(rule("base", *expr) for expr in rules)) == what


def test_the_way_through_a_prerouting_chain_is_by_the_ports() -> None:
    (line,) = found(chain("early", "prerouting"), rule("early", where(TCP_PORT, 2207), DROP))
    assert "nft insert rule ip filter early tcp dport 2200-2299 accept; nft" in line


PLAIN_FIREWALLD = [
    chain("filter_INPUT", "input", table="firewalld", family="inet"),
    chain("filter_FORWARD", "forward", table="firewalld", family="inet"),
    chain("mangle_PREROUTING", "prerouting", table="firewalld", family="inet"),
    *(
        rule(f"filter_{hook}", *expr, table="firewalld", family="inet")
        for hook in ("INPUT", "FORWARD")
        for expr in (
            [vmap(STATE, established=ACCEPT, related=ACCEPT)],
            [where({"ct": {"key": "status"}}, "dnat", "in"), ACCEPT],
            [interface("iifname", "lo"), ACCEPT],
            [where(STATE, "invalid", "in"), DROP],
            [interface("iifname", "rb0"), {"goto": {"target": "trusted"}}],
            [interface("oifname", "rb0"), {"goto": {"target": "trusted"}}],
            [{"reject": {"type": "icmpx", "expr": "admin-prohibited"}}],
        )
    ),
    rule("trusted", ACCEPT, table="firewalld", family="inet"),
    rule(
        "mangle_PREROUTING",
        where({"meta": {"key": "nfproto"}}, "ipv6"),
        where({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, False),
        DROP,
        table="firewalld",
        family="inet",
    ),
]
PLAIN_DOCKER = [
    *DOCKER,
    *(rule("DOCKER-USER", interface(key, "rb0"), ACCEPT) for key in ("iifname", "oifname")),
    chain("PREROUTING", "prerouting", table="raw"),
    rule(
        "PREROUTING",
        where({"payload": {"protocol": "ip", "field": "daddr"}}, "172.17.0.2"),
        interface("iifname", "docker0", "!="),
        DROP,
        table="raw",
    ),
    rule("DOCKER-FORWARD", interface("oifname", "docker0"), interface("iifname", "docker0", "!="), DROP),
]
PLAIN_UFW = [
    chain("ufw-user-input"),
    chain("INPUT", "input", "drop"),
    chain("FORWARD", "forward", "drop"),
    chain("OUTPUT", "output"),
    rule("INPUT", {"xt": {"type": "match", "name": "conntrack"}}, DROP),
    chain("ufw-not-local"),
    rule("INPUT", jump("ufw-not-local")),
    rule("ufw-not-local", {"xt": {"type": "match", "name": "addrtype"}}, {"return": None}),
    rule("ufw-not-local", DROP),
    rule("INPUT", {"xt": {"type": "match", "name": "addrtype"}}, {"limit": {"rate": 3}}, {"log": {}}),
    rule("INPUT", interface("iifname", "rb0"), ACCEPT),
    rule("FORWARD", interface("iifname", "rb0"), ACCEPT),
    rule("FORWARD", interface("oifname", "rb0"), ACCEPT),
]


@pytest.mark.parametrize("listed", [PLAIN_FIREWALLD, PLAIN_DOCKER, PLAIN_UFW])
def test_a_plain_firewall_that_was_opened_for_us_is_not_complained_of(listed: list[dict[str, Any]]) -> None:
    assert found(*listed) == []


def test_without_egress_the_way_out_need_not_be_open() -> None:
    assert len(found(chain("FORWARD", "forward", "drop"), egress=False)) == 1


def test_firewalld_is_told_of_its_zone() -> None:
    listed = chain("filter_FORWARD", "forward", table="firewalld", family="inet")
    drops = rule("filter_FORWARD", {"reject": {"type": "icmpx"}}, table="firewalld", family="inet")
    assert "--zone=trusted --add-interface=rb0" in found(listed, drops)[0]
