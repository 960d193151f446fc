"""What a TLS proxy in front of ravebot needs, and the ports to open; made from the configuration."""

from __future__ import annotations

from urllib.parse import urlsplit

from ravebot.config.model import Config
from ravebot.web.ci import PREFIX
from ravebot.web.server import WEBHOOK_PATH

_LARGEST_WEBHOOK = "25m"


def caddy(config: Config) -> str:
    """A block for a Caddyfile; Caddy gets the certificate by itself. Only webhooks, and CI jobs, are passed on."""
    passed = [WEBHOOK_PATH, *([f"{PREFIX}/*"] if config.gitlab.ci else [])]
    handled = "".join(f"    handle {path} {{\n        reverse_proxy {config.http.listen}\n    }}\n" for path in passed)
    return f"{_site(config)} {{\n{handled}    respond 404\n}}\n"


def nginx(config: Config) -> str:
    """A server block for nginx, with the usual places of a certificate of Let's Encrypt."""
    host, port = _host(config), _port(config)
    return (
        "server {\n"
        f"    listen {port} ssl;\n"
        f"    server_name {host};\n"
        f"    ssl_certificate /etc/letsencrypt/live/{host}/fullchain.pem;\n"
        f"    ssl_certificate_key /etc/letsencrypt/live/{host}/privkey.pem;\n"
        f"    client_max_body_size {_LARGEST_WEBHOOK};\n"
        f"{_location(config, f'= {WEBHOOK_PATH}')}"
        f"{_location(config, f'{PREFIX}/') if config.gitlab.ci else ''}"
        "    location / { return 404; }\n"
        "}\n"
    )


def _location(config: Config, path: str) -> str:
    return (
        f"    location {path} {{\n"
        f"        proxy_pass http://{config.http.listen};\n"
        "        proxy_set_header Host $host;\n"
        "    }\n"
    )


def needed(config: Config) -> bool:
    """Whether the public address is one of TLS, which ravebot itself does not speak."""
    return config.http.public_url is not None and config.http.public_url.scheme == "https"


def ports(config: Config) -> list[str]:
    """Which ports to open in a firewall, and to whom."""
    ssh, web = config.sandbox.ssh_ports, config.sandbox.web_ports
    people = ", ".join(map(str, config.access.allow_from)) or "everybody"
    lines = [f"{ssh.first}-{ssh.last}/tcp and {web.first}-{web.last}/tcp from {people}: the sandboxes"]
    if needed(config):
        who, what = ("GitLab and its runners", "webhooks and CI jobs") if config.gitlab.ci else ("GitLab", "webhooks")
        lines.insert(0, f"{_port(config)}/tcp from {who}: the proxy, for {what}")
    elif config.http.public_url is not None:
        lines.insert(0, f"{config.http.address[1]}/tcp from GitLab: webhooks, without TLS")
    return lines


def _host(config: Config) -> str:
    return urlsplit(str(config.http.public_url)).hostname or ""


def _port(config: Config) -> int:
    parts = urlsplit(str(config.http.public_url))
    return parts.port or (443 if parts.scheme == "https" else 80)


def _site(config: Config) -> str:
    port = _port(config)
    return _host(config) + ("" if port == 443 else f":{port}")
