"""The nftables expressions and statements that our rules use, as nft's JSON (libnftables-json(5))."""

from __future__ import annotations

from ravebot.access.nftables.nft import JsonObject

VISITOR: JsonObject = {
    "concat": [
        {"ct": {"key": "ip saddr", "dir": "original"}},
        {"ct": {"key": "proto-dst", "dir": "original"}},
    ]
}
"""Source address and port of the host, as of the connection's first packet: the same for its replies."""

HOST_PORT: JsonObject = {"ct": {"key": "proto-dst", "dir": "original"}}

RETURN: JsonObject = {"return": None}
DROP: JsonObject = {"drop": None}
ACCEPT: JsonObject = {"accept": None}


def match(left: JsonObject, right: object, op: str = "==") -> JsonObject:
    return {"match": {"op": op, "left": left, "right": right}}


def payload(protocol: str, field: str) -> JsonObject:
    return {"payload": {"protocol": protocol, "field": field}}


def meta(key: str) -> JsonObject:
    return {"meta": {"key": key}}


def concat(*parts: JsonObject) -> JsonObject:
    return {"concat": list(parts)}


def came_from(interface: str, op: str = "==") -> JsonObject:
    return match(meta("iifname"), interface, op)


def goes_to(interface: str, op: str = "==") -> JsonObject:
    return match(meta("oifname"), interface, op)


def protocol(name: str) -> JsonObject:
    """The layer 4 protocol. Must precede HOST_PORT: nft derives the port's type from it."""
    return match(meta("l4proto"), name)


def connection_state(*states: str) -> JsonObject:
    return match({"ct": {"key": "state"}}, list(states), "in")


def connection_status(bit: str, present: bool = True) -> JsonObject:
    return match({"ct": {"key": "status"}}, bit, "in" if present else "!")


def direction(name: str) -> JsonObject:
    return match({"ct": {"key": "direction"}}, name)


def to_this_host() -> JsonObject:
    return match({"fib": {"result": "type", "flags": ["daddr"]}}, "local")


def has_mark(bit: int, present: bool = True) -> JsonObject:
    return match({"&": [meta("mark"), bit]}, bit if present else 0)


def set_mark(bit: int) -> JsonObject:
    return {"mangle": {"key": meta("mark"), "value": {"|": [meta("mark"), bit]}}}


def copy_client_mac_to_sender() -> JsonObject:
    """Write the MAC that a DHCP request names (RFC 2131: `chaddr`, at byte 28) over the frame's sender.

    The rule ends if the packet is too short. nft takes raw bytes for a MAC only as the result of a computation.
    """
    chaddr: JsonObject = {"payload": {"base": "th", "offset": 8 * (8 + 28), "len": 48}}  # in bits, past the UDP header
    return {"mangle": {"key": payload("ether", "saddr"), "value": {"|": [chaddr, 0]}}}


def lacks_connection_mark(bit: int) -> JsonObject:
    return match({"&": [{"ct": {"key": "mark"}}, bit]}, 0)


def set_connection_mark(bit: int) -> JsonObject:
    mark: JsonObject = {"ct": {"key": "mark"}}
    return {"mangle": {"key": mark, "value": {"|": [mark, bit]}}}


def jump(chain: str) -> JsonObject:
    return {"jump": {"target": chain}}


def goto(chain: str) -> JsonObject:
    return {"goto": {"target": chain}}


def counted_in(name: str) -> JsonObject:
    """Count this packet in a dynamic set, by visitor. The rule continues unless the set is full."""
    return {"set": {"op": "update", "elem": VISITOR, "set": f"@{name}", "stmt": [{"counter": None}]}}


def counted_by(name: str) -> JsonObject:
    """Count this packet in one named counter."""
    return {"counter": name}


def within_rate(name: str, key: JsonObject, rate: int, per: str, burst: int) -> JsonObject:
    """The rule continues unless the key's token bucket is empty or the set is full."""
    limit: JsonObject = {"rate": rate, "burst": burst, "per": per}
    return {"set": {"op": "update", "elem": key, "set": f"@{name}", "stmt": [{"limit": limit}]}}


def within_count(name: str, key: JsonObject, most: int) -> JsonObject:
    """The rule continues while the key has at most `most` connections, this one included, unless the set is full.

    Only for a connection's first packet. The kernel does not count closed TCP connections (TIME_WAIT), and removes a
    key without connections. The set must have no timeout: a quiet key would be counted from 0 again.
    """
    return {"set": {"op": "add", "elem": key, "set": f"@{name}", "stmt": [{"ct count": {"val": most}}]}}


def is_first() -> list[JsonObject]:
    """The first packet of a connection; not a repetition of it, which is `new` too, but confirmed."""
    return [connection_state("new"), connection_status("confirmed", present=False)]


def networks(prefixes: list[str]) -> object:
    """Networks such as `10.0.0.0/8`, as the right side of a match."""
    parts = [prefix.partition("/") for prefix in prefixes]
    return {"set": [{"prefix": {"addr": address, "len": int(length or 32)}} for address, _, length in parts]}
