"""The one parser of http(s) URLs of pictures, used for the check and for the call, and the list of hosts allowed."""

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, urljoin

from modelwright.errors import ConfigError

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?(?P<target>[/?].*)?",
    re.IGNORECASE | re.DOTALL,
)
_HOST = re.compile(r"(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}
_LONGEST = 4096
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


@dataclass(frozen=True)
class PictureUrl:
    """Where a picture is called for.

    Attributes:
        host: lower case, an IPv6 address without its brackets.
        target: path and query, as they are sent.
    """

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def read(cls, url: str) -> Self | None:
        """None for what is not plainly a URL: a user or password, a backslash, a blank, a host that is not ASCII."""
        url, _, _ = url.partition("#")
        match = _URL.fullmatch(url) if len(url) <= _LONGEST else None
        if match is None or any(character <= " " or character in "\\\x7f" for character in url):
            return None
        scheme = match["scheme"].lower()
        port = int(match["port"] or _PORTS[scheme])
        target = match["target"] or "/"
        try:
            target = quote(target if target.startswith("/") else "/" + target, safe=_PRINTABLE)
        except UnicodeEncodeError:  # half of a surrogate pair
            return None
        return cls(scheme, match["host"].lower().strip("[]"), port, target) if 0 < port < 65536 else None

    def joined(self, location: str) -> Self | None:
        """Where a redirect from here leads."""
        try:
            return self.read(urljoin(f"{self.scheme}://{self.authority}{self.target}", location))
        except ValueError:
            return None

    @property
    def authority(self) -> str:
        """Host and port as the ``Host`` header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


class PictureHosts:
    """The hosts that pictures may be fetched from.

    Args:
        allowed: ``example.org``, which is asked at ports 80 and 443, or ``example.org:8080``, at that port too. No
            subdomains are meant.

    Raises:
        ConfigError: an entry that is no host.
    """

    def __init__(self, allowed: tuple[str, ...]):
        self._ports: dict[str, set[int]] = {}
        for entry in allowed:
            match = _HOST.fullmatch(entry)
            if match is None or int(match["port"] or 1) not in range(1, 65536):
                raise ConfigError(f"picture_host must be a host or host:port, got {entry!r}", field="picture_host")
            ports = self._ports.setdefault(match["host"].lower().strip("[]"), set(_PORTS.values()))
            ports |= {int(match["port"])} if match["port"] else set()

    def allow(self, url: PictureUrl) -> bool:
        """Whether the host is on the list and asked at a port that it is allowed at."""
        return url.port in self._ports.get(url.host, ())
