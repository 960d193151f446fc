"""Finds what beats our accept: another's base chain that drops new connections to or from the guests.

An accept ends only its own chain; a drop anywhere is final. Docker, ufw and firewalld all bring a forward chain that
drops by default. Each such chain is walked with a packet of ours; conditions that we can't judge count as not met.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, cast

from ravebot.access.nft import JsonObject

Verdict = Literal["accept", "drop", "return"]
ChainName = tuple[str, str, str]  # family, table, chain

_MAX_DEPTH = 32


@dataclass(frozen=True)
class Packet:
    """The first packet of a connection, as far as a rule's conditions may ask."""

    what: str
    hook: str
    facts: Mapping[str, frozenset[object]]  # what is known: the values that a condition on it accepts


def _packets(bridge: str, egress: bool) -> Iterable[Packet]:
    ours, new = frozenset[object]([bridge]), frozenset[object](["new"])
    tcp, udp = frozenset[object](["tcp", 6]), frozenset[object](["udp", 17])
    visit = {"meta oifname": ours, "ct state": new, "ct status": frozenset[object](["dnat"]), "meta l4proto": tcp}
    yield Packet("connections to the sandboxes", "forward", visit)
    if egress:
        leaving = {"meta iifname": ours, "ct state": new, "ct status": frozenset[object](), "meta l4proto": tcp}
        yield Packet("the sandboxes' way to the internet", "forward", leaving)
    asking = {"meta iifname": ours, "ct state": new, "meta l4proto": udp, "udp dport": frozenset[object]([67])}
    yield Packet("the sandboxes' DHCP", "input", asking)


def conflicts(listed: list[JsonObject], *, own_table: str, bridge: str, egress: bool = True) -> list[str]:
    """What `nft -j list ruleset` holds against us: one sentence for each chain and kind of traffic, with a mend."""
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
    found = []
    for name, chain in chains.items():
        family, table, _ = name
        if family not in ("ip", "inet") or table == own_table:
            continue
        for packet in _packets(bridge, egress):
            if chain.get("hook") != packet.hook:
                continue
            verdict = _walk(name, packet, rules, 0)
            if verdict == "drop" or (verdict != "accept" and chain.get("policy") == "drop"):
                mend = _mend(name, chains, packet.hook, bridge)
                found.append(f"the chain {' '.join(name)} drops {packet.what}: {mend}")
    return found


def _walk(
    name: ChainName, packet: Packet, rules: Mapping[ChainName, list[list[JsonObject]]], depth: int
) -> Verdict | None:
    if depth > _MAX_DEPTH:
        return None
    for rule in rules.get(name, []):
        if not all(_met(cast(JsonObject, part["match"]), packet) for part in rule if "match" in part):
            continue
        if any(_is_unknown(part) for part in rule):
            continue
        verdict = _verdict(rule)
        target = _target(rule)
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
    """iptables' own REJECT target, as nft shows it."""
    body = part.get("xt")
    return isinstance(body, dict) and body.get("type") == "target" and body.get("name") in ("REJECT", "DROP")


def _is_unknown(part: JsonObject) -> bool:
    """A condition that is no match: iptables' modules, limits, verdict maps, set lookups."""
    return ("xt" in part and not _rejects(part)) or any(key in part for key in ("limit", "vmap", "quota", "ct count"))


def _met(match: JsonObject, packet: Packet) -> bool:
    known = packet.facts.get(_asked(match.get("left")))
    wanted = _values(match.get("right"))
    if known is None or wanted is None:
        return False
    hit = any(value == given or _fits(value, given) for value in wanted for given in known)
    return hit != (match.get("op") in ("!=", "!"))


def _asked(left: object) -> str:
    if isinstance(left, dict):
        if "meta" in left:
            return f"meta {left['meta'].get('key')}"
        if "ct" in left and "dir" not in left["ct"]:
            return f"ct {left['ct'].get('key')}"
        if "payload" in left:
            return f"{left['payload'].get('protocol')} {left['payload'].get('field')}"
    return ""


def _values(right: object) -> list[object] | None:
    """The values a match names; None where they can't be told (a named set)."""
    if isinstance(right, dict):
        right = right.get("set")
    if isinstance(right, list):
        return list(right)
    if isinstance(right, str | int) and not str(right).startswith("@"):
        return [right]
    return None


def _fits(pattern: object, value: object) -> bool:
    return isinstance(pattern, str) and isinstance(value, str) and pattern.endswith("*") and fnmatchcase(value, pattern)


def _mend(name: ChainName, chains: Mapping[ChainName, JsonObject], hook: str, bridge: str) -> str:
    family, table, chain = name
    siblings = {other for other_family, other_table, other in chains if (other_family, other_table) == (family, table)}
    ways = ("-i", "-o") if hook == "forward" else ("-i",)
    if table == "firewalld":
        return f"run `firewall-cmd --permanent --zone=trusted --add-interface={bridge}; firewall-cmd --reload`"
    if any(sibling.startswith("ufw-") for sibling in siblings):
        commands = ["ufw allow in on " + bridge]
        if hook == "forward":
            commands = [f"ufw route allow {way} on {bridge}" for way in ("in", "out")]
        return f"run `{'; '.join(commands)}`"
    if hook == "forward" and "DOCKER-USER" in siblings:
        commands = [f"iptables -I DOCKER-USER {way} {bridge} -j ACCEPT" for way in ways]
        return f"run `{'; '.join(commands)}` (again at each boot)"
    names = {"-i": "iifname", "-o": "oifname"}
    return (
        f"run `{'; '.join(f'nft insert rule {family} {table} {chain} {names[way]} {bridge} accept' for way in ways)}`"
    )
