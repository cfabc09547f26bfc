"""Where a server listens: sockets that are open before the model is loaded, a Unix socket of its owner's, and TLS."""

import errno
import os
import socket
import ssl
import stat
from contextlib import suppress

from modelwright.errors import ConfigError
from modelwright.server.settings import ServerSettings


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets for all addresses of `host`, at one port; 0 is a free one.

    Raises:
        ConfigError: it is no address of this machine, or the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"host must be an address of this machine, and {host!r:.80} is none", field="host") from error
    opened: list[socket.socket] = []
    try:
        for family, kind, _, _, address in dict.fromkeys(found):
            taken = opened[0].getsockname()[1] if opened else port
            made = socket.socket(family, kind)
            opened.append(made)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((address[0], taken, *address[2:]))
    except OSError as error:
        for made in opened:
            made.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port ({port}) is taken at {host}; --port 0 takes a free one", field="port") from error
        raise ConfigError(f"host {host}, port {port} cannot be listened at: {error.strerror}", field="host") from error
    return opened


def listen_at(path: str) -> list[socket.socket]:
    """A Unix socket that its owner alone may open; one that a server left there is replaced.

    Raises:
        ConfigError: another server listens there, or something else is there.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(f"uds {path} is there and is no socket", field="uds")
        with socket.socket(socket.AF_UNIX) as other:
            try:
                other.connect(path)
            except OSError:
                os.unlink(path)
            else:
                raise ConfigError(f"uds {path} is another server's", field="uds")
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        made.bind(path)
    except OSError as error:
        made.close()
        raise ConfigError(f"uds {path} cannot be made: {error.strerror or error}", field="uds") from error
    finally:
        os.umask(before)
    return [made]


def tls_context(settings: ServerSettings) -> ssl.SSLContext | None:
    """What TLS is talked with, 1.2 or newer; None for none.

    Raises:
        ConfigError: a file that holds no certificate or key, or that do not go together.
    """
    if settings.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"tls_cert {settings.tls_cert} and --tls-key {settings.tls_key} cannot be used together: {_reason(error)}",
            field="tls_cert",
        ) from error
    if settings.tls_client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(settings.tls_client_ca)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"tls_client_ca {settings.tls_client_ca} cannot be used: {_reason(error)}", field="tls_client_ca"
            ) from error
    return context


def url_of(settings: ServerSettings, sockets: list[socket.socket]) -> str:
    """How the server is called, by whoever is on this machine."""
    if settings.uds is not None:
        return f"unix:{settings.uds}"
    scheme = "http" if settings.tls_cert is None else "https"
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{scheme}://{host}:{sockets[0].getsockname()[1]}{settings.root_path}"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or getattr(error, "reason", None) or "no PEM"
