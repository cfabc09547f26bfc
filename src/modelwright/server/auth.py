"""`Keys`, who may ask for what: keys of flags, a variable and a file, compared by their hashes in constant time."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelwright.errors import ConfigError
from modelwright.server.settings import ServerSettings
from modelwright.server.wire.errors import ApiError

VARIABLE = "MODELWRIGHT_API_KEYS"
"""Keys apart by commas or blanks."""
SCOPES = ("infer", "metrics", "admin")
CLOSABLE = ("ignore_eos", "prompt_logprobs", "priority")
"""Fields of requests that can be closed for a key."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(r"[\x21-\x7e]{1,512}")
_HASH = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class Key:
    """What the owner of a key may do; the key itself is nowhere in it.

    Attributes:
        name: as logs and metrics may tell it.
        scopes: of `SCOPES`.
        max_concurrent: how many requests at once; None for any number.
        closed_fields: of `CLOSABLE`, fields that its requests must not set.
    """

    name: str
    scopes: frozenset[str]
    max_concurrent: int | None = None
    closed_fields: frozenset[str] = frozenset()


ANYBODY = Key("", frozenset({"infer", "metrics"}))
"""Whoever comes where no keys are set; what is the administrator's needs a key."""
_DEFAULT = frozenset({"infer", "metrics"})


class Keys:
    """The keys of a server, read again from their file by `reload`.

    Raises:
        ConfigError: a line of the file that is none, a key or a name that is there twice. No message holds a key.
    """

    def __init__(self, settings: ServerSettings, environ: Mapping[str, str]):
        typed = [*_named("flag", settings.api_key, "--api-key")]
        typed += _named("variable", environ.get(VARIABLE, "").replace(",", " ").split(), VARIABLE)
        self._typed = typed
        self._file = None if settings.api_key_file is None else Path(settings.api_key_file)
        self._known: list[tuple[bytes, Key]] = []
        self.reload()

    def __len__(self) -> int:
        return len(self._known)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} keys)"

    def reload(self) -> None:
        """Read the file again; where it cannot be read, a ConfigError is raised and nothing changes."""
        known = [*self._typed, *(_lines(self._file) if self._file else ())]
        if self._file is not None and not known:
            raise ConfigError(f"api_key_file {self._file} holds no key", field="api_key_file")
        for number, (digest, key) in enumerate(known):
            if any(digest == other for other, _ in known[:number]):
                raise ConfigError(f"the key called {key.name} is given twice")
            if any(key.name == other.name for _, other in known[:number]):
                raise ConfigError(f"two keys are called {key.name}")
        self._known = known

    def find(self, headers: Sequence[tuple[bytes, bytes]]) -> Key:
        """Whose request it is, by ``Authorization: Bearer`` or ``x-api-key``.

        Raises:
            ApiError: 401, there are keys and it brings none of them.
        """
        if not self._known:
            return ANYBODY
        found = None
        for presented in _presented(headers):
            digest = hashlib.sha256(presented).digest()
            for known, key in self._known:  # all of them, whichever it is: time tells nothing
                found = key if hmac.compare_digest(known, digest) else found
        if found is None:
            raise ApiError(
                401,
                "invalid_api_key",
                "this server needs a key that it knows, as Authorization: Bearer KEY or x-api-key: KEY",
                headers={"www-authenticate": "Bearer"},
            )
        return found


def check_scope(key: Key, scope: str) -> None:
    """Raise an ApiError, 403, where `key` may not do what `scope` covers."""
    if scope not in key.scopes:
        has = ", ".join(sorted(key.scopes)) or "none"
        raise ApiError(403, "forbidden_scope", f"this needs a key with the scope {scope}, and yours has {has}")


def _presented(headers: Sequence[tuple[bytes, bytes]]) -> Iterator[bytes]:
    for name, value in headers:
        if name == b"x-api-key":
            yield value.strip()
        elif name == b"authorization":
            scheme, _, rest = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                yield rest.strip()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("ascii")).digest()


def _named(source: str, keys: Iterable[str], called: str) -> Iterator[tuple[bytes, Key]]:
    for number, key in enumerate(keys, start=1):
        if not _KEY.fullmatch(key):
            raise ConfigError(f"{called} must be 1 to 512 visible characters of ASCII, and number {number} is not")
        yield _digest(key), Key(f"{source}-{number}", _DEFAULT)


def _lines(file: Path) -> Iterator[tuple[bytes, Key]]:
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise ConfigError(f"api_key_file {file} cannot be read: {reason}", field="api_key_file") from error
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield _read(line.strip(), f"line {number} of the api-key-file")


def _read(line: str, where: str) -> tuple[bytes, Key]:
    """``name:scopes:key``; among the scopes may stand ``max_concurrent=N`` and ``closed=FIELD+FIELD``."""
    name, mark, rest = line.partition(":")
    rights, second, secret = rest.partition(":")
    if not mark or not second or not _NAME.fullmatch(name):
        raise ConfigError(f"{where} must be name:scopes:key, with a name of letters, digits, . _ and -")
    words = [word.strip() for word in rights.split(",") if word.strip()]
    options = dict(word.split("=", 1) for word in words if "=" in word)
    scopes = frozenset(word for word in words if "=" not in word)
    if not scopes or not scopes <= set(SCOPES):
        raise ConfigError(f"{where}: scopes must be of {', '.join(SCOPES)}, apart by commas")
    most = options.pop("max_concurrent", None)
    closed = frozenset(options.pop("closed", "").split("+")) - {""}
    if options or not closed <= set(CLOSABLE) or not (most is None or (most.isdecimal() and int(most) > 0)):
        raise ConfigError(
            f"{where}: besides scopes there are max_concurrent=N, at least 1, and closed= of {', '.join(CLOSABLE)}, "
            "apart by +"
        )
    return _digest_of(secret, where), Key(name, scopes, None if most is None else int(most), closed)


def _digest_of(secret: str, where: str) -> bytes:
    if secret.startswith("sha256="):
        if not _HASH.fullmatch(secret.removeprefix("sha256=")):
            raise ConfigError(f"{where}: sha256= must be followed by 64 hexadecimal digits")
        return bytes.fromhex(secret.removeprefix("sha256="))
    if not _KEY.fullmatch(secret):
        raise ConfigError(f"{where}: a key must be 1 to 512 visible characters of ASCII")
    return _digest(secret)
