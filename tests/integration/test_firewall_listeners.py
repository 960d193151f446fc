"""The host's listening ports, as the kernel tells them."""

from __future__ import annotations

import socket

import pytest

from ravebot.access.listeners import listening_ports

pytestmark = pytest.mark.integration


async def test_a_port_is_listed_while_someone_listens_on_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert port in await listening_ports()
    assert port not in await listening_ports()


async def test_a_connection_to_elsewhere_is_no_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getsockname()[1] not in await listening_ports()
