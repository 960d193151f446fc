"""Others' chains that would drop what we accept, found by reading the ruleset."""

from __future__ import annotations

from typing import Any

from ravebot.access.conflicts import conflicts

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
    return conflicts(list(listed), own_table="ravebot-x", bridge="rb0", egress=egress)


def test_an_empty_ruleset_and_our_own_table_are_no_conflict() -> None:
    assert found() == []
    assert found(chain("forwarding", "forward", "drop", table="ravebot-x", family="inet")) == []


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
    assert len(found(drops, rule("FORWARD", interface("iifname", "eth0"), ACCEPT))) == 2
    assert found(drops, rule("FORWARD", interface("iifname", "eth0", "!="), ACCEPT)) == found(drops)[:1]
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
    dhcp, *forward = found(*ufw)
    assert dhcp.endswith("run `ufw allow in on rb0`")
    assert forward[0].endswith("run `ufw route allow in on rb0; ufw route allow out on rb0`")
    udp = where({"payload": {"protocol": "udp", "field": "dport"}}, {"set": [53, 67]})
    assert not [line for line in found(*ufw, rule("INPUT", interface("iifname", "rb0"), udp, ACCEPT)) if "DHCP" in line]


def test_without_egress_the_way_out_need_not_be_open() -> None:
    assert len(found(chain("FORWARD", "forward", "drop"), egress=False)) == 1


def test_firewalld_is_told_of_its_zone() -> None:
    listed = chain("filter_FORWARD", "forward", table="firewalld", family="inet")
    drops = rule("filter_FORWARD", {"reject": {"type": "icmpx"}}, table="firewalld", family="inet")
    assert "--zone=trusted --add-interface=rb0" in found(listed, drops)[0]
