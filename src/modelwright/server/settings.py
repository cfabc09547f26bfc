"""`ServerSettings`, everything that can be set about a server; where values come from is told in `sources`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """How requests are taken. Names are those of the flags of ``modelwright serve``; sizes are bytes, times seconds."""

    # where
    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    root_path: str = ""
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    # who
    api_key: tuple[str, ...] = ()
    api_key_file: str | None = None
    no_auth: bool = False
    allowed_host: tuple[str, ...] = ()
    cors_origin: tuple[str, ...] = ()
    isolate_keys: bool = False
    # what is served
    served_model_name: tuple[str, ...] = ()
    any_model_name: bool = False
    strict_fields: bool = False
    default_max_tokens: int = 2048
    max_n: int = 8
    max_logprobs: int = 20
    plain_content_only: bool = False
    reasoning: str | None = None
    tool_format: str = "auto"
    chat_template: str | None = None
    guide_timeout: float = 5.0
    responses_store: int = 0
    # pictures
    max_pictures: int = 16
    max_picture_bytes: int = 10 * 2**20
    max_picture_pixels: int = 40_000_000
    picture_host: tuple[str, ...] = ()
    picture_private: bool = False
    picture_dir: str | None = None
    # limits
    max_queue: int | None = None
    max_queue_tokens: int | None = None
    max_body: int = 32 * 2**20
    body_timeout: float = 30.0
    keep_alive: float = 5.0
    max_connections: int = 2048
    max_connections_per_address: int = 256
    queue_timeout: float | None = None
    request_timeout: float | None = None
    ping_seconds: float = 15.0
    stream_interval_ms: float = 0.0
    write_timeout: float = 30.0
    # life
    drain_delay: float = 0.0
    shutdown_timeout: float = 30.0
    stall_seconds: float = 120.0
    # what is told
    metrics_prefix: str = "modelwright:"
    metrics_port: int | None = None
    log_format: str = "text"
    log_content: bool = False
    trace_content: bool = False
