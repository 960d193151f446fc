"""A real Prometheus and a real Alertmanager that watch one bot, on loopback, set up by the files in monitoring/."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "monitoring"
_UNPACKED = ROOT / ".cache" / "prometheus" / "usr" / "bin"  # by ./dev: as services they would run beside the tests


def program(name: str) -> str:
    """The path of `prometheus`, `promtool`, `prometheus-alertmanager` or `amtool`."""
    found = shutil.which(name, path=str(_UNPACKED)) or shutil.which(name)
    assert found, f"{name} is not here: ./dev setup unpacks it"
    return found


def _with_templates(alertmanager: str) -> tuple[str, ...]:
    """The words that run it: Debian's reads its templates only below /usr/share, where the unpacked one has none."""
    if not alertmanager.startswith(str(_UNPACKED)):
        return (alertmanager,)
    share = _UNPACKED.parent / "share"
    return ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /usr/share && exec "$@"', str(share), alertmanager)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Watchers:
    """`async with Watchers(folder, http, token_file) as watchers:`; they look and tell every second or two, instead of
    every 15 seconds and half minute."""

    def __init__(self, folder: Path, bot: str, token_file: Path) -> None:
        self._folder = folder
        self._bot = bot.removeprefix("http://")
        self._token_file = token_file
        self._more = folder / "more.rules.yml"
        self._stack = AsyncExitStack()
        self.prometheus = f"http://127.0.0.1:{_free_port()}"
        self.alertmanager = f"http://127.0.0.1:{_free_port()}"

    async def __aenter__(self) -> Self:
        try:
            self._folder.mkdir(exist_ok=True)
            self._run(
                program("prometheus"), f"--config.file={self._prometheus_file()}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address={self.prometheus.removeprefix('http://')}", "--log.level=warn",
                "--web.enable-lifecycle",
                "--rules.alert.resend-delay=1s",  # after a reload, Alertmanager is not known for a moment
            )  # fmt: skip
            self._run(
                *_with_templates(program("prometheus-alertmanager")), f"--config.file={self._alertmanager_file()}",
                f"--storage.path={self._folder / 'alertmanager'}", "--cluster.listen-address=",
                f"--web.listen-address={self.alertmanager.removeprefix('http://')}", "--log.level=warn",
            )  # fmt: skip
            for url in (self.prometheus, self.alertmanager):
                await self._until_ready(f"{url}/-/ready")
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that it gives now, each with `metric` and `value`."""
        found: list[dict[str, Any]] = (await self._get("query", query=expression))["result"]
        return found

    async def rules(self) -> list[dict[str, Any]]:
        """Every rule with its `name`, `state`, `health` and `lastError`."""
        return [rule for group in (await self._get("rules"))["groups"] for rule in group["rules"]]

    async def add(self, *rules: dict[str, Any]) -> None:
        """Have Prometheus follow these beside ours, instead of those that were added before."""
        self._written(self._more.name, {"groups": [{"name": "more", "rules": list(rules)}]})
        async with aiohttp.ClientSession() as session, session.post(f"{self.prometheus}/-/reload") as answer:
            assert answer.status == 200, await answer.text()

    async def _get(self, what: str, **query: str) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.prometheus}/api/v1/{what}", params=query) as answer,
        ):
            found = await answer.json()
        assert found["status"] == "success", found
        return dict(found["data"])

    def _prometheus_file(self) -> Path:
        """Ours, with the ports of here."""
        config = yaml.safe_load((MONITORING / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(MONITORING / "prometheus" / "ravebot.rules.yml"), str(self._more)]
        alertmanagers = [{"targets": [self.alertmanager.removeprefix("http://")]}]
        config["alerting"]["alertmanagers"][0]["static_configs"] = alertmanagers
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [self._bot]
        return self._written("prometheus.yml", config)

    def _alertmanager_file(self) -> Path:
        config = yaml.safe_load((MONITORING / "alertmanager" / "alertmanager.yml").read_text())
        config["route"] |= {"group_wait": "1s", "group_interval": "1s", "repeat_interval": "2s"}
        webhook = config["receivers"][0]["webhook_configs"][0]
        webhook["url"] = f"http://{self._bot}/webhooks/alertmanager"
        webhook["http_config"]["authorization"]["credentials_file"] = str(self._token_file)
        return self._written("alertmanager.yml", config)

    def _written(self, name: str, content: object) -> Path:
        path = self._folder / name
        path.write_text(yaml.safe_dump(content))
        return path

    def _run(self, *command: str) -> None:
        log = self._stack.enter_context((self._folder / f"{len(list(self._folder.glob('*.log')))}.log").open("wb"))
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self._stack.push_async_callback(_end, process)

    async def _until_ready(self, url: str) -> None:
        async with asyncio.timeout(30), aiohttp.ClientSession() as session:
            while True:
                with suppress(aiohttp.ClientError):
                    async with session.get(url) as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.1)


async def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        await asyncio.to_thread(process.wait, 10)
    except subprocess.TimeoutExpired:
        process.kill()
        await asyncio.to_thread(process.wait)
