"""The dashboards over a real run: sandboxes wait, live, fail and end, people and a flood connect to them, and agents
work in them with a model."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.agents.model import MODEL, Model
from tests.support.crashes import rows
from tests.support.dashboards import DASHBOARDS
from tests.support.gitlab import MergeRequest
from tests.support.pictures.boards import Source
from tests.support.pictures.picture import Picture
from tests.support.prometheus import Watchers
from tests.support.stage import ROOT, Stage

_AGENT = "/srv/merge-request/.rave/agent"
_KNOWN = {"owner": "alice", "projects": ["group/*"], "acp": {"command": ["sh", _AGENT]}, "models": ["ours"]}
SETTINGS: dict[str, Any] = {
    "pool": {"lifetime": "80s", "warn_before": ["20s"], "max_running": 2},
    "sandbox": {"smoke_tests": [{"http": "/"}]},
    "provider": {"accelerator": "auto"},
    "agents": [
        {"name": "coder", **_KNOWN, "limits": {"messages_per_day": 20, "tokens_per_day": 1000}},
        {"name": "reviewer", **_KNOWN, "limits": {"messages_per_day": 10, "tokens_per_day": 1000}},
    ],
}
"""What ravebot is configured with, on top of the stage's own."""

_RUN_SECONDS, _ROUND_SECONDS = 275, 5
_SHOWN_SECONDS, _OF_A_SANDBOX_SECONDS = 300, 120
_RATE = "40s"  # machines are looked at every 20 seconds
_BUSY = """\
#!/bin/sh
head -c 20000000 /dev/urandom >blob
nohup sh -c 'while :; do i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; sleep 2; done' >/dev/null 2>&1 &
sleep {seconds}
"""
_FAILING = "#!/bin/sh\nsleep 2\necho 'no such package' >&2\nexit 3\n"
_WORKING = f"""\
#!/bin/sh
# A coding agent in a few lines: it asks its model, thinks for some seconds, and says what it found.
ask() {{
    body='{{"model":"'$1'","max_tokens":200,"messages":[{{"role":"user","content":"What should be done here?"}}]}}'
    wget -q -O - --header 'Content-Type: application/json' --post-data "$body" \\
        http://127.0.0.1:4180/ours/v1/chat/completions >/dev/null
}}
update='{{"jsonrpc":"2.0","method":"session/update","params":{{"sessionId":"one","update":%s}}}}\\n'
words='{{"sessionUpdate":"agent_message_chunk","content":{{"type":"text","text":"I have looked at it."}}}}'
while IFS= read -r line; do
    id=${{line#*\\"id\\":}} id=${{id# }} id=${{id%%[!0-9]*}}
    case $line in
        *'"initialize"'*) result='{{"protocolVersion":1,"agentCapabilities":{{}}}}' ;;
        *'"session/new"'*) result='{{"sessionId":"one"}}' ;;
        *'"session/prompt"'*)
            ask {MODEL}
            printf "$update" "$words"
            sleep 12
            case $line in *larger*) ask larger ;; *) ask {MODEL} ;; esac
            result='{{"stopReason":"end_turn"}}' ;;
        *) continue ;;
    esac
    printf '{{"jsonrpc":"2.0","id":%s,"result":%s}}\\n' "$id" "$result"
done
"""
_VISIT = """\
import socket, sys, urllib.request
host, ssh, web, times = sys.argv[1], *map(int, sys.argv[2:])
kept = []
for _ in range(times):
    try:
        kept.append(socket.create_connection((host, ssh), timeout=0.3))
    except OSError:
        pass
try:
    urllib.request.urlopen(f"http://{host}:{web}/", timeout=2).read()
except OSError:
    pass
"""


@dataclass
class Figures:
    """Lets a stage's ravebot work for some minutes, and takes the pictures from what Prometheus saw meanwhile."""

    stage: Stage
    watchers: Watchers
    began: float = field(default_factory=time.monotonic)
    _asked: set[tuple[int, str]] = field(default_factory=set)

    async def live(self) -> None:
        """Some merge requests, two sandboxes at a time; every few seconds visits and messages to agents."""
        stage = self.stage
        first = self._open("Add a login page", _BUSY.format(seconds=6))
        self._open("Upgrade libfoo", _FAILING)
        plan: list[tuple[float, str, MergeRequest | None]] = [
            (20, "Sort the list", None), (22, "Translate it", None), (60, "", first), (90, "Cache it", None),
            (130, "Break it again", None), (150, "One more idea", None), (205, "The last one", None),
        ]  # fmt: skip
        while (passed := time.monotonic() - self.began) < _RUN_SECONDS:
            while plan and plan[0][0] <= passed:
                _, title, mr = plan.pop(0)
                if mr is not None:
                    stage.gitlab.merge(mr)
                else:
                    self._open(title, _FAILING if "Break" in title else _BUSY.format(seconds=4))
            await self._visit(40 if 100 < passed < 110 else 2)
            await self._ask_agents()
            await asyncio.sleep(_ROUND_SECONDS)

    async def pictures(self) -> dict[str, Picture]:
        """Of each dashboard, by its file's name."""
        values = {
            "instance": self.stage.http.removeprefix("http://"),
            "project": self.stage.project.path,
            "mr": f"{self.stage.project.path}!{self._oldest()}",
            "__rate_interval": _RATE,
        }
        pictures = {}
        for path in DASHBOARDS:
            seconds = _OF_A_SANDBOX_SECONDS if path.stem == "sandbox" else _SHOWN_SECONDS
            source = Source(self.watchers.prometheus, seconds, {**values, "__range": f"{seconds}s"})
            pictures[path.stem] = await source.picture(path)
        return pictures

    def _open(self, title: str, setup: str) -> MergeRequest:
        branch = title.lower().replace(" ", "-")
        return self.stage.open_merge_request(title, branch, files={".rave/setup": setup, ".rave/agent": _WORKING})

    async def _visit(self, times: int) -> None:
        """Somebody connects to what is ready."""
        for ready in rows(self.stage, "SELECT ssh_port, web_port FROM sandboxes WHERE state = 'ready'"):
            ports = [str(ready["ssh_port"]), str(ready["web_port"]), str(times)]
            await self.stage.client.arun([sys.executable, "-c", _VISIT, self.stage.host, *ports], timeout=60)

    async def _ask_agents(self) -> None:
        """Alice asks both agents once about each sandbox, as soon as it is being started: the message waits for it."""
        for row in rows(self.stage, "SELECT iid FROM sandboxes WHERE state IN ('starting', 'ready')"):
            for agent, text in (("coder", "what is left to do?"), ("reviewer", "ask the larger model")):
                if (row["iid"], agent) not in self._asked:
                    self._asked.add((row["iid"], agent))
                    said = f"@{agent} !{row['iid']} {text}"
                    await self.stage.matrix_alice.send(self.stage.room, said, **{"m.mentions": {}})

    def _oldest(self) -> int:
        """The merge request of the sandbox that has been ready longest, of those that do not end in a moment."""
        later = int((time.time() + 15) * 1_000_000)
        live = f"state = 'ready' AND expires_at > {later}"
        found = rows(self.stage, f"SELECT iid FROM sandboxes WHERE {live} ORDER BY ready_at LIMIT 1")
        assert found, "no sandbox is ready at the end"
        return int(found[0]["iid"])


async def take(folder: Path, docs: bool) -> list[Path]:
    """Everything from the set-up on; returns the pictures. With `docs`, the operators' one is that of docs/."""
    with Model() as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        try:
            return await _taken(folder, docs, service.url.removesuffix("/v1"))
        finally:
            service.shutdown()


async def _taken(folder: Path, docs: bool, model: str) -> list[Path]:
    ours = {"name": "ours", "url": model, "paths": ["/v1/chat/completions"], "allow": [MODEL]}
    async with Stage({**SETTINGS, "models": [ours]}) as stage:
        token = stage.folder / "alertmanager-token"
        token.write_text("none")  # ravebot's door for alerts is shut here: what fires is only in Prometheus
        async with Watchers(stage.folder / "watchers", stage.http, token) as watchers:
            await stage.start()
            figures = Figures(stage, watchers)
            print(f"Sandboxes live for {_RUN_SECONDS} seconds …", flush=True)
            await figures.live()
            taken = await figures.pictures()
    paths = []
    for name, picture in taken.items():
        to_docs = docs and name == "operators"
        paths.append((ROOT / "docs" if to_docs else folder) / f"dashboard-{name}.png")
        await picture.save(paths[-1])
    return paths
