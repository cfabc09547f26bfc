"""Which addresses of the internet a server may be made to call, by IANA's registries of special purposes."""

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

_PRIVATE = [
    *map(IPv4Network, ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")),
    *map(IPv6Network, ("::1/128", "fc00::/7")),
]
"""Of one's own machine, house or carrier."""
_SPECIAL_4 = [
    *map(IPv4Network, ("0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24")),
    *map(IPv4Network, ("192.52.193.0/24", "192.88.99.0/24", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24")),
    *map(IPv4Network, ("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4")),
]
"""This network, link-local, protocols, documentation, benchmarks, multicast, reserved, broadcast."""
_GLOBAL_6 = IPv6Network("2000::/3")
_SPECIAL_6 = [
    *map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3ffe::/16", "3fff::/20")),
]
"""Teredo, ORCHID and other protocols, documentation, 6to4, the former 6bone."""
_HOLDING_4 = [*map(IPv6Network, ("::ffff:0:0/96", "64:ff9b::/96"))]
"""Mapped addresses and NAT64: the last 32 bits are the IPv4 address that is called."""


def may_call(address: str, *, private: bool = False) -> bool:
    """Whether an address, as a resolver gives it, is one of the public internet.

    Args:
        private: let those of one's own machine and networks pass too. Link-local addresses, where clouds keep their
            machines' credentials, multicast, and addresses that hold another (6to4, Teredo) never do.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address):
        if parsed.scope_id is not None:
            return False
        if any(parsed in network for network in _HOLDING_4):
            parsed = IPv4Address(int(parsed) & 0xFFFFFFFF)
    if any(parsed in network for network in _PRIVATE):
        return private
    if isinstance(parsed, IPv4Address):
        return not any(parsed in network for network in _SPECIAL_4)
    return parsed in _GLOBAL_6 and not any(parsed in network for network in _SPECIAL_6)
