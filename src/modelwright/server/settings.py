"""`ServerSettings`, everything that can be set about a server: default, range and help of each; `sources` fills it."""

import dataclasses
import os
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from modelwright.configs.limits import Limit
from modelwright.errors import ConfigError

WHERE, KEYS, SERVED, PICTURES, LIMITS, LIFE, TOLD = "Address", "Keys", "Answers", "Pictures", "Limits", "Life", "Told"
"""The groups in which help shows the settings."""
_MiB = 2**20
_DAY = 86_400.0
_PREFIX = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


def setting(default: Any, group: str, about: str, metavar: str | None = None, **rule: Any) -> Any:
    """A field with its help and the rule of its values, which `Limit` states."""
    return dataclasses.field(
        default=default, metadata={"group": group, "limit": Limit(about, **rule), "metavar": metavar}
    )


@dataclass(frozen=True)
class ServerSettings:
    """How requests are taken. Names are those of the flags of ``modelwright serve``; sizes are bytes, times seconds."""

    SECRET: ClassVar[tuple[str, ...]] = ("api_key",)
    """Fields that are never printed."""

    host: str = setting("127.0.0.1", WHERE, "The address to listen at; another than loopback needs keys.", "ADDRESS")
    port: int = setting(
        8000, WHERE, "The port to listen at; 0 takes a free one and says which.", "N", least=0, most=65535
    )
    uds: str | None = setting(None, WHERE, "Listen at this Unix socket instead, which only its owner opens.", "PATH")
    root_path: str = setting("", WHERE, "What a proxy in front takes off the beginning of paths.", "PATH")
    tls_cert: str | None = setting(None, WHERE, "A certificate (PEM): talk TLS 1.2 or newer.", "FILE")
    tls_key: str | None = setting(None, WHERE, "The key of --tls-cert (PEM).", "FILE")
    tls_client_ca: str | None = setting(None, WHERE, "Clients must have certificates of these (PEM).", "FILE")
    api_key: tuple[str, ...] = setting(
        (), KEYS, "A key that clients must send; repeat for more. `ps` shows it: --api-key-file is safer.", "KEY"
    )
    api_key_file: str | None = setting(
        None, KEYS, "Lines name:scopes:key, or name:scopes:sha256=HEX; read again on SIGHUP.", "FILE"
    )
    no_auth: bool = setting(False, KEYS, "Really serve everybody who reaches the address, without keys.")
    allowed_host: tuple[str, ...] = setting(
        (), KEYS, "A name by which clients may call the server, besides its address and localhost; repeat.", "HOST"
    )
    cors_origin: tuple[str, ...] = setting(
        (), KEYS, "An origin whose pages may call, like https://example.org; * is all, without credentials.", "ORIGIN"
    )
    isolate_keys: bool = setting(False, KEYS, "Never find a prompt's beginning again for another key.")
    served_model_name: tuple[str, ...] = setting(
        (), SERVED, "What requests call the model; repeat for aliases. Left out: MODEL.", "NAME"
    )
    any_model_name: bool = setting(False, SERVED, "Answer whatever model a request names.")
    strict_fields: bool = setting(False, SERVED, "Refuse fields that are unknown instead of reporting them.")
    default_max_tokens: int = setting(2048, SERVED, "Longest answer where a request does not say.", "N", least=1)
    max_n: int = setting(8, SERVED, "Answers that a request may ask for.", "N", least=1, most=1024)
    max_logprobs: int = setting(20, SERVED, "Likeliest tokens that a request may ask for.", "N", least=0, most=1000)
    plain_content_only: bool = setting(False, SERVED, "Take grounding tokens in messages as plain characters, too.")
    reasoning: str | None = setting(
        None, SERVED, "think: tell what stands between <think> and </think> apart.", "NAME", names=("think",)
    )
    tool_format: str = setting(
        "auto", SERVED, "How calls of tools are written.", "NAME", names=("auto", "llama3", "deepseek", "json")
    )
    chat_template: str | None = setting(
        None, SERVED, "A Jinja file that says how messages are printed, or the name of a template.", "FILE"
    )
    guide_timeout: float = setting(5.0, SERVED, "Longest time to compile a schema.", "SECONDS", above=0, most=600)
    responses_store: int = setting(0, SERVED, "Responses kept for later requests.", "N", least=0, most=10_000)
    max_pictures: int = setting(16, PICTURES, "Pictures of a request.", "N", least=0, most=10_000)
    max_picture_bytes: int = setting(10 * _MiB, PICTURES, "Bytes of a picture's file.", "BYTES", least=1)
    max_picture_pixels: int = setting(40_000_000, PICTURES, "Pixels of a picture.", "N", least=1)
    picture_host: tuple[str, ...] = setting((), PICTURES, "A host that pictures may be fetched from; repeat.", "HOST")
    picture_private: bool = setting(False, PICTURES, "Fetch pictures from private addresses, too.")
    picture_dir: str | None = setting(None, PICTURES, "A folder whose pictures file: URLs may name.", "FOLDER")
    max_queue: int | None = setting(None, LIMITS, "Requests that wait. Left out: 4 times --max-batch.", "N", least=0)
    max_queue_tokens: int | None = setting(
        None, LIMITS, "Tokens of the requests that wait. Left out: 4 times the cache.", "N", least=1
    )
    max_body: int = setting(32 * _MiB, LIMITS, "Bytes of a request's body.", "BYTES", least=1)
    body_timeout: float = setting(30.0, LIMITS, "Time in which a request must be here.", "SECONDS", above=0, most=_DAY)
    keep_alive: float = setting(5.0, LIMITS, "How long an idle connection is kept.", "SECONDS", above=0, most=_DAY)
    max_connections: int = setting(2048, LIMITS, "Connections at once.", "N", least=1, most=2**20)
    max_connections_per_address: int = setting(256, LIMITS, "The same of one address.", "N", least=1, most=2**20)
    queue_timeout: float | None = setting(
        None, LIMITS, "How long a request may wait. Left out: without end.", "SECONDS", above=0, most=30 * _DAY
    )
    request_timeout: float | None = setting(
        None, LIMITS, "How long a request may take. Left out: without end.", "SECONDS", above=0, most=30 * _DAY
    )
    ping_seconds: float = setting(
        15.0, LIMITS, "Pause after which a stream gets a comment; 0 is none.", "SECONDS", least=0, most=_DAY
    )
    stream_interval_ms: float = setting(0.0, LIMITS, "Join what a stream gets for so long.", "MS", least=0, most=60_000)
    write_timeout: float = setting(
        30.0, LIMITS, "A client that takes nothing for so long is cut off.", "SECONDS", above=0, most=_DAY
    )
    drain_delay: float = setting(0.0, LIFE, "Go on serving for so long after SIGTERM.", "SECONDS", least=0, most=_DAY)
    shutdown_timeout: float = setting(
        30.0, LIFE, "Then let running requests go on for so long.", "SECONDS", least=0, most=_DAY
    )
    stall_seconds: float = setting(
        120.0, LIFE, "Work without a step for so long is a stall.", "SECONDS", above=0, most=30 * _DAY
    )
    metrics_prefix: str = setting(
        "modelwright:", TOLD, "What names of metrics begin with; vllm: for its boards.", "TEXT"
    )
    metrics_port: int | None = setting(
        None, TOLD, "Tell metrics at a port of their own instead.", "N", least=0, most=65535
    )
    log_format: str = setting("text", TOLD, "How a request is logged.", "NAME", names=("text", "json"))
    log_content: bool = setting(False, TOLD, "Log what was asked and answered, too.")
    trace_content: bool = setting(False, TOLD, "Trace it, too.")

    def check(self) -> None:
        """Raise a ConfigError for the first setting out of its range, or that does not go with another."""
        for field in dataclasses.fields(self):
            value, limit = getattr(self, field.name), field.metadata["limit"]
            if isinstance(value, float) and value != value:
                raise ConfigError(f"{field.name} must be a number, got nan", field=field.name)
            if isinstance(value, bool | tuple) or (isinstance(value, str) and not limit.names):
                continue
            if not limit.allows(value):
                raise ConfigError(limit.broken(field.name, value), field=field.name)
        self._check_tls()
        self._check_texts()

    def _check_tls(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            lacking, given = ("tls_key", "tls_cert") if self.tls_key is None else ("tls_cert", "tls_key")
            raise ConfigError(
                f"{lacking} must be given where --{given.replace('_', '-')} is, for TLS needs both", field=lacking
            )
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ConfigError("tls_client_ca needs --tls-cert and --tls-key", field="tls_client_ca")
        for name in ("tls_cert", "tls_key", "tls_client_ca", "api_key_file"):
            path = getattr(self, name)
            if path is not None and not os.path.isfile(path):
                raise ConfigError(f"{name} must be a file, and {path} is none", field=name)
        if self.picture_dir is not None and not os.path.isdir(self.picture_dir):
            raise ConfigError(f"picture_dir must be a folder, and {self.picture_dir} is none", field="picture_dir")

    def _check_texts(self) -> None:
        if not _PREFIX.fullmatch(self.metrics_prefix):
            raise ConfigError(
                f"metrics_prefix must be letters, digits, _ and :, no digit first; got {self.metrics_prefix!r:.80}",
                field="metrics_prefix",
            )
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise ConfigError(
                f"root_path must begin with / and end without one, got {self.root_path!r:.80}", field="root_path"
            )
        if self.metrics_port is not None and self.metrics_port == self.port != 0 and self.uds is None:
            raise ConfigError(f"metrics_port must not be --port ({self.port})", field="metrics_port")
        for name in ("served_model_name", "allowed_host", "picture_host", "api_key"):
            if any(not text.strip() for text in getattr(self, name)):
                raise ConfigError(f"{name} must not be empty", field=name)
