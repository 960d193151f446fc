"""Finds other firewalls' base chains that drop new connections to or from the guests.

Our accept rules can't override them: an accept ends only its own chain, while a drop in any chain is final. Docker, ufw
and firewalld all bring a forward chain that drops by default. Each such chain is evaluated for sample packets; a
condition that we can't evaluate counts as not met. An accept rule is never proposed for a table of any ravebot
instance: that would break the isolation of its guests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Literal, cast

from ravebot.access.nftables.nft import JsonObject
from ravebot.access.nftables.reading import instances_on
from ravebot.access.nftables.ruleset import TABLE_PREFIX
from ravebot.access.nftables.traffic import Packet, Traffic, packets
from ravebot.sandboxes import naming

Verdict = Literal["accept", "drop", "return"]
ChainName = tuple[str, str, str]  # family, table, chain
Rules = Mapping[ChainName, list[list[JsonObject]]]

_MAX_DEPTH = 32
_PORTS = ("tcp dport", "th dport")


def conflicts(
    listed: list[JsonObject],
    *,
    own_table: str,
    bridge: str,
    egress: bool = True,
    ports: Iterable[range] = (),
    guest_ports: Iterable[int] = (),
    uplinks: Iterable[str] = (),
) -> list[str]:
    """The conflicts in the output of `nft -j list ruleset`: a sentence for each chain and kind of traffic, with a fix.

    Other ravebot instances that use our bridge are conflicts, too. Rules that drop only certain ports or interfaces are
    found if `ports` (the host's), `guest_ports` and `uplinks` are given.
    """
    chains: dict[ChainName, JsonObject] = {}
    rules: dict[ChainName, list[list[JsonObject]]] = defaultdict(list)
    for entry in listed:
        if "chain" in entry:
            chain = cast(JsonObject, entry["chain"])
            chains[str(chain["family"]), str(chain["table"]), str(chain["name"])] = chain
        elif "rule" in entry:
            rule = cast(JsonObject, entry["rule"])
            where = str(rule["family"]), str(rule["table"]), str(rule["chain"])
            rules[where].append(cast(list[JsonObject], rule.get("expr", [])))
    traffic = Traffic(bridge, egress, tuple(ports), tuple(guest_ports), tuple(uplinks))
    ours = list(packets(traffic, _mentioned_ports(rules)))
    others = instances_on(listed, bridge) - {own_table.removeprefix(TABLE_PREFIX)}
    found = [another_instance(other, bridge) for other in sorted(others)]
    for name, chain in chains.items():
        family, table, _ = name
        if family not in ("ip", "inet") or table.startswith(TABLE_PREFIX):
            continue
        for packet in ours:
            if chain.get("hook") != packet.hook:
                continue
            verdict = _walk(name, packet, rules, 0)
            if verdict == "drop" or (verdict != "accept" and chain.get("policy") == "drop"):
                fix = _fix(name, chains, packet, bridge)
                found.append(f"the chain {' '.join(name)} drops {packet.what}: {fix}")
    return list(dict.fromkeys(found))


def _mentioned_ports(rules: Rules) -> set[int]:
    asked = (
        cast(JsonObject, part["match"])
        for chain in rules.values()
        for rule in chain
        for part in rule
        if "match" in part
    )
    values = (
        value for match in asked if _field(match.get("left")) in _PORTS for value in _values(match.get("right")) or ()
    )
    return {end for value in values for end in (_range(value) or (value,)) if isinstance(end, int)}


def _walk(name: ChainName, packet: Packet, rules: Rules, depth: int) -> Verdict | None:
    if depth > _MAX_DEPTH:
        return None
    for rule in rules.get(name, []):
        if not all(_met(cast(JsonObject, part["match"]), packet) for part in rule if "match" in part):
            continue
        if any(_is_unknown(part) for part in rule):
            if depth > 0 and packet.hook == "input" and _returns_by_address_type(rule):
                return "return"
            continue
        outcome = _outcome(rule, packet)
        verdict = _verdict(outcome)
        target = _target(outcome)
        if target is not None:
            kind, chain = target
            inner = _walk((name[0], name[1], chain), packet, rules, depth + 1)
            if inner in ("accept", "drop"):
                return inner
            if kind == "goto":
                return "return"
        elif verdict is not None:
            return verdict
    return None


def _outcome(rule: list[JsonObject], packet: Packet) -> list[JsonObject]:
    """The rule's statements, with a verdict map replaced by its verdict for this packet."""
    return [_looked_up(cast(JsonObject, part["vmap"]), packet) if "vmap" in part else part for part in rule]


def _looked_up(vmap: JsonObject, packet: Packet) -> JsonObject:
    known = packet.facts.get(_field(vmap.get("key")))
    data = vmap.get("data")
    for value, verdict in data["set"] if known and isinstance(data, dict) and "set" in data else []:
        if value == "*" or any(_fits(value, given) for given in known or ()):
            return cast(JsonObject, verdict)
    return {}


def _verdict(rule: list[JsonObject]) -> Verdict | None:
    for part in rule:
        if "accept" in part:
            return "accept"
        if "drop" in part or "reject" in part or _rejects(part):
            return "drop"
        if "return" in part:
            return "return"
    return None


def _target(rule: list[JsonObject]) -> tuple[str, str] | None:
    for part in rule:
        for kind in ("jump", "goto"):
            if kind in part:
                return kind, str(cast(JsonObject, part[kind])["target"])
    return None


def _rejects(part: JsonObject) -> bool:
    """Whether this is iptables' own REJECT or DROP target, as nft shows it."""
    body = part.get("xt")
    return isinstance(body, dict) and body.get("type") == "target" and body.get("name") in ("REJECT", "DROP")


def _is_unknown(part: JsonObject) -> bool:
    """Whether this is a condition that we can't evaluate: an iptables module, a limit, a count."""
    return ("xt" in part and not _rejects(part)) or any(key in part for key in ("limit", "quota", "ct count"))


def _returns_by_address_type(rule: list[JsonObject]) -> bool:
    """Whether the rule returns, and its only unknown condition is iptables' addrtype (nft does not show its arguments).

    In this way ufw exempts packets to this host from a chain that ends with a drop; all packets that we check at the
    input hook are to this host.
    """
    unknown = [cast(JsonObject, part.get("xt") or {}).get("name") for part in rule if _is_unknown(part)]
    return unknown == ["addrtype"] and _verdict(rule) == "return"


def _met(match: JsonObject, packet: Packet) -> bool:
    known = packet.facts.get(_field(match.get("left")))
    wanted = _values(match.get("right"))
    if known is None or wanted is None:
        return False
    hit = any(_fits(value, given) for value in wanted for given in known)
    return hit != (match.get("op") in ("!=", "!"))


def _field(left: object) -> str:
    if isinstance(left, dict):
        if "meta" in left:
            return f"meta {left['meta'].get('key')}"
        if "ct" in left and "dir" not in left["ct"]:
            return f"ct {left['ct'].get('key')}"
        if "payload" in left:
            return f"{left['payload'].get('protocol')} {left['payload'].get('field')}"
    return ""


def _values(right: object) -> list[object] | None:
    """The values that a match names; None if they are not known (a named set)."""
    if isinstance(right, dict) and "set" in right:
        right = right["set"]
    if isinstance(right, list):
        return list(right)
    if _range(right) or (isinstance(right, str | int) and not str(right).startswith("@")):
        return [right]
    return None


def _range(value: object) -> tuple[int, int] | None:
    ends = value.get("range") if isinstance(value, dict) else None
    if isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, int) for end in ends):
        return ends[0], ends[1]
    return None


def _fits(pattern: object, value: object) -> bool:
    if ends := _range(pattern):
        return isinstance(value, int) and ends[0] <= value <= ends[1]
    if isinstance(pattern, str) and isinstance(value, str) and pattern.endswith("*"):
        return fnmatchcase(value, pattern)
    return pattern == value


def another_instance(other: str, bridge: str) -> str:
    """The message about an instance that uses our bridge."""
    return naming.another_instance(other, f"has firewall rules for the bridge {bridge}", naming.CHANGE_BRIDGE)


def _fix(name: ChainName, chains: Mapping[ChainName, JsonObject], packet: Packet, bridge: str) -> str:
    family, table, chain = name
    siblings = {other for other_family, other_table, other in chains if (other_family, other_table) == (family, table)}
    if table == "firewalld":
        return f"run `firewall-cmd --permanent --zone=trusted --add-interface={bridge}; firewall-cmd --reload`"
    if any(sibling.startswith("ufw-") for sibling in siblings):
        commands = {
            "input": [f"ufw allow in on {bridge}"],
            "output": [f"ufw allow out on {bridge}"],
            "forward": [f"ufw route allow {way} on {bridge}" for way in ("in", "out")],
        }.get(packet.hook)
        if commands:
            return f"run `{'; '.join(commands)}`"
    if packet.hook == "forward" and "DOCKER-USER" in siblings:
        commands = [f"iptables -I DOCKER-USER {way} {bridge} -j ACCEPT" for way in ("-i", "-o")]
        return f"run `{'; '.join(commands)}` (after each boot again)"
    return f"run `{'; '.join(f'nft insert rule {family} {table} {chain} {one} accept' for one in packet.selectors)}`"
