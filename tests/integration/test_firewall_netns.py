"""The tests' own namespaces: what the acceptance test stands on."""

from __future__ import annotations

import subprocess
import threading
from socket import create_server

import pytest

from tests.support.netns import Namespace

pytestmark = pytest.mark.integration


def test_a_machine_on_a_cable_to_this_host_reaches_it_and_leaves_nothing_behind() -> None:
    with Namespace("client") as client:
        cable = client.link_host("eth0", "198.18.77.2/30", "198.18.77.1/30")
        with create_server(("198.18.77.1", 0)) as server:

            def greet() -> None:
                connection, peer = server.accept()
                with connection:
                    connection.sendall(f"hello {peer[0]}".encode())

            greeter = threading.Thread(target=greet)
            greeter.start()
            assert client.connect("198.18.77.1", server.getsockname()[1]) == "hello 198.18.77.2"
            greeter.join()
    links = subprocess.run(["ip", "-br", "link"], check=True, capture_output=True, text=True).stdout
    spaces = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    assert cable not in links
    assert client.name not in spaces


def test_closing_ends_the_processes_that_run_in_it() -> None:
    client = Namespace("client")
    process = client.serve(4000)
    client.close()
    client.close()
    assert process.returncode is not None
