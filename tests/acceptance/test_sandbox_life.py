"""A sandbox from the opened merge request to its end, on real parts: who gets in, what gets out, and the queue."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import subprocess
from contextlib import AsyncExitStack

import pytest

from tests.support import leftovers
from tests.support.crashes import rows
from tests.support.gitlab import MergeRequest, Note
from tests.support.gitlab.state import CommitStatus
from tests.support.inside import inside
from tests.support.stage import Stage

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

LARGE = secrets.token_hex(5 * 1024**2)
TOKEN = "glpat-abcdefghij0123456789"
NEEDS = {
    ".rave.yml": """\
setup: [sh prepare]
smoke_tests:
  - {http: /feature.txt}
  - {run: sh check}
  - {run: sh never}
links: [{name: Front page, path: /index.html}]
results: {junit: ["build/*.xml"]}
""",
    "prepare": "mkdir build\n",
    "check": f"""\
cp left/*.xml build/
head -c 52428800 /dev/zero >build/huge.xml
ln -s /etc/passwd build/link.xml
for number in $(seq 60); do echo "line $number"; done
echo "the token is {TOKEN}"
exit 3
""",
    "left/tests.xml": f"""\
<testsuites><testsuite name="app">
  <testcase classname="app.Login" name="works" time="1.5"/>
  <testcase classname="app.Login" name="fails" time="0.5"><failure message="{TOKEN} is wrong"/></testcase>
  <testcase name="breaks"><error>no libfoo | &lt;/details&gt;</error></testcase>
  <testcase name="later"><skipped/></testcase>
</testsuite></testsuites>
""",
    "left/bomb.xml": "<!DOCTYPE l [<!ENTITY a 'aa'><!ENTITY b '&a;&a;'>]><testsuite><testcase name='&b;'/></testsuite>",
}
TRY = "timeout 4 nc {address} {port} </dev/null"


def machine_of(stage: Stage, mr: MergeRequest) -> tuple[str, str]:
    """The name and address of the machine that a merge request has now."""
    found = rows(
        stage,
        "SELECT m.name, m.address FROM machines m JOIN sandboxes s ON s.machine_id = m.id"
        " WHERE s.iid = ? ORDER BY s.id DESC LIMIT 1",
        mr.iid,
    )
    return found[0]["name"], found[0]["address"]


def port_of(note: Note) -> int:
    found = re.search(r"-p (\d+) ", note.body)
    assert found, note.body
    return int(found[1])


async def test_two_sandboxes_let_in_their_people_and_keep_everything_else_out_and_a_third_waits() -> None:
    changes = {"sandbox": {"connections_per_minute": {"ssh": 30, "web": 300}}}
    async with Stage(changes) as stage:
        await stage.start()
        # Too much for the guest agent's channel: it goes in on a disk.
        first = stage.open_merge_request("First", "one", files={"feature.txt": "new\n", "large.txt": LARGE})
        second = stage.open_merge_request("Second", "two")
        note, other_note = await asyncio.gather(stage.ready(first), stage.ready(second))

        await only_the_announced_key_and_host(stage, note)
        assert "It works" in await stage.web(note)
        await guests_reach_nobody(stage, first, second, other_note)
        await a_stolen_address_is_no_use(stage, first, second, other_note)
        await a_failed_test_comes_back_as_tables_a_masked_log_and_a_status(stage, second)
        third = stage.open_merge_request("Third", "three")
        await stage.note_says(third, "waits in the queue")
        await connections_over_the_limit_are_dropped_and_all_are_audited(stage, note)

        stage.gitlab.close(first)
        await stage.note_says(first, "Sandbox ended: the merge request was closed")
        freed = await stage.ready(third)
        assert await asyncio.to_thread(stage.ssh, freed, "alice", "true")
        stage.gitlab.merge(second)
        stage.gitlab.merge(third)
        for mr in (second, third):
            await stage.note_says(mr, "Sandbox ended: the merge request was merged")
            assert len(await stage.cards(mr)) == 1
        assert_nothing_left(stage)


async def only_the_announced_key_and_host(stage: Stage, note: Note) -> None:
    known = stage.folder / "announced"
    trusting = ("-o", f"UserKnownHostsFile={known}")
    good = await asyncio.to_thread(
        stage.ssh, note, "alice", "id -un && cat /srv/merge-request/feature.txt", extra=trusting
    )
    assert (good.returncode, good.stdout) == (0, "agent\nnew\n"), good.stderr
    large = await asyncio.to_thread(stage.ssh, note, "alice", "sha256sum < /srv/merge-request/large.txt")
    assert large.stdout.split()[0] == hashlib.sha256(LARGE.encode()).hexdigest()
    assert "agent's channel" not in stage.bot.log.read_text()
    listed = subprocess.run(["ssh-keygen", "-lf", str(known)], check=True, capture_output=True, text=True).stdout
    assert re.findall(r"SHA256:\S+", listed) == re.findall(r"SHA256:[\w+/]+", note.body)
    stranger = await asyncio.to_thread(stage.ssh, note, "mallory", "true")
    assert stranger.returncode == 255
    assert "Permission denied" in stranger.stderr
    password = ("-o", "PubkeyAuthentication=no", "-o", "PreferredAuthentications=password,keyboard-interactive")
    refused = await asyncio.to_thread(stage.ssh, note, "alice", "true", extra=password)
    assert refused.returncode == 255
    assert "Permission denied (publickey)" in refused.stderr


async def guests_reach_nobody(stage: Stage, first: MergeRequest, second: MergeRequest, other_note: Note) -> None:
    """Neither each other, nor the host on any of its addresses, nor a private neighbour: but all is there to be had."""
    name, _ = machine_of(stage, first)
    _, neighbour = machine_of(stage, second)
    gateway = str(stage.subnet.network_address + 1)
    async with AsyncExitStack() as stack:
        stack.enter_context(Listener(9191))
        stage.client.serve(9192)
        assert "hello" in (stage.client.connect(stage.host, 9191) or "")  # it does listen
        client = f"10.79.{stage.number}.2"
        destinations = (
            *((neighbour, 22), (neighbour, 3002), (gateway, 9191), (stage.host, 9191)),
            *((client, 9192), (stage.host, port_of(other_note))),
        )
        tries = [
            asyncio.to_thread(inside, name, TRY.format(address=address, port=port)) for address, port in destinations
        ]
        for destination, (code, said) in zip(destinations, await asyncio.gather(*tries), strict=True):
            assert unreached(code, said), (destination, said)
        code, said = await asyncio.to_thread(inside, name, f"ping -c 1 -W 2 {neighbour}")
        assert code != 0, said


def unreached(code: int, said: str) -> bool:
    """Neither a service's greeting nor a good end; nc's own complaint may be there."""
    return code != 0 and not re.search("SSH-|hello|HTTP", said)


async def a_stolen_address_is_no_use(stage: Stage, first: MergeRequest, second: MergeRequest, other_note: Note) -> None:
    thief, own = machine_of(stage, first)
    _, stolen = machine_of(stage, second)
    gateway = str(stage.subnet.network_address + 1)
    asking = f"timeout 4 nslookup localhost {gateway}"
    code, said = await asyncio.to_thread(inside, thief, asking)
    assert code == 0, said
    take = f"ip addr flush dev eth0; ip addr add {stolen}/24 dev eth0; arping -c 3 -U -I eth0 {stolen}; {asking}"
    code, said = await asyncio.to_thread(inside, thief, take)
    assert code != 0, said
    still = await asyncio.to_thread(stage.ssh, other_note, "alice", "hostname -i; cat /srv/merge-request/feature.txt")
    assert still.returncode == 0, still.stderr
    back = f"ip addr flush dev eth0; ip addr add {own}/24 dev eth0; ip route add default via {gateway}; {asking}"
    code, said = await asyncio.to_thread(inside, thief, back)
    assert code == 0, said


async def a_failed_test_comes_back_as_tables_a_masked_log_and_a_status(stage: Stage, mr: MergeRequest) -> None:
    stage.gitlab.push(mr, NEEDS)
    note = await stage.note_says(mr, "its tests failed: `sh check` ended with code 3")
    body = note.body.replace("\u2060", "")
    assert "❌ **4 tests, 2 failed, 1 skipped**, in 2.0 s" in body
    assert "| set-up `sh prepare` | ✅ done | " in body
    assert "| test `GET /feature.txt` | ✅ done | " in body
    assert "| test `sh check` | ❌ ended with code 3 | " in body
    assert "`sh never`" not in body  # the first test that fails ends them
    failed = body[body.index("| Failed test | Why |") :].splitlines()[2:4]
    assert [line.split("|")[1].strip() for line in failed] == ["`app.Login.fails`", "`breaks`"]
    assert "`build/bomb.xml` can't be used: it declares a document type or entities" in body
    assert "`build/huge.xml` is too large: all reports together may have 1 MiB" in body
    assert "`build/link.xml` is a link out of the code" in body
    log = body[body.index("<summary>The end of what it printed</summary>") : body.index("</details>")]
    assert log.splitlines()[-3:-1] == ["the token is [masked]", "```"]
    assert "line 60\n" in log
    assert "line 20\n" not in log
    assert re.search(r"\| \*\*Pages\*\* \| \[Front page\]\(http://[\d.]+:\d+/index\.html\) \|", body)
    assert "ssh -o HostKeyAlias=" in body  # it goes on as it was
    environment = stage.gitlab.environment(stage.project, f"review/mr-{mr.iid}")
    assert environment

    def told() -> list[CommitStatus]:
        return [one for one in stage.project.statuses if one.sha == mr.sha and one.status == "failed"]

    (status,) = await stage.until(told, 20, "the commit's status does not say so")
    assert status.description.endswith("`sh check` ended with code 3: 4 tests, 2 failed, 1 skipped")
    assert status.target_url == f"{stage.gitlab.url}/group/app/-/environments/{environment.id}"

    async def card_tells() -> bool:
        (card,) = await stage.cards(mr)
        assert TOKEN not in card.body
        return "4 tests, 2 failed, 1 skipped" in card.body

    await stage.until(card_tells, 20, "the card does not say so")
    kept = b"".join(path.read_bytes() for path in stage.state_dir.glob("ravebot.db*"))
    assert b"[masked]" in kept
    assert TOKEN.encode() not in body.encode() + kept


async def connections_over_the_limit_are_dropped_and_all_are_audited(stage: Stage, note: Note) -> None:
    port = port_of(note)
    # One process for all: forty quick connections, of which thirty may pass.
    script = (
        "import socket,sys\nopen_ones=[]\n"
        "for _ in range(40):\n"
        "    s=socket.socket(); s.settimeout(0.3)\n"
        f"    try: s.connect(('{stage.host}',{port})); open_ones.append(s)\n"
        "    except OSError: pass\n"
        "print(len(open_ones))"
    )
    done = await stage.client.arun(["python3", "-c", script], timeout=60)
    assert 0 < int(done.stdout) < 40, done

    async def counted() -> bool:
        dropped = re.search(r'connections_dropped_total{service="ssh"} (\d+)', await stage.metrics())
        return bool(dropped and int(dropped[1]) > 0)

    await stage.until(counted, 20, "what was dropped is not counted")
    seen = rows(stage, "SELECT service, source, count, dropped, bytes FROM connections")
    assert {row["source"] for row in seen} == {f"10.79.{stage.number}.2"}
    assert {row["service"] for row in seen} == {"ssh", "web"}
    assert sum(row["dropped"] for row in seen) > 0
    audit = await stage.bot.command("audit")
    assert "access.first" in audit.stdout
    assert f"10.79.{stage.number}.2" in audit.stdout


def assert_nothing_left(stage: Stage) -> None:
    assert leftovers.machines(stage) == []
    assert leftovers.disks(stage) == []
    assert leftovers.addresses(stage) == []
    assert leftovers.rules(stage) == []
    assert leftovers.ports(stage) == []


async def test_the_owner_is_warned_can_extend_and_the_end_is_graceful_and_accounted_for() -> None:
    pool = {"lifetime": "16s", "max_lifetime": "28s", "warn_before": ["13s", "6s"], "shutdown_grace": "20s"}
    async with Stage({"pool": pool}) as stage:
        await stage.start()
        mr = stage.open_merge_request()
        await stage.ready(mr)
        warning = await stage.matrix_ops.wait_for(
            stage.room, lambda m: "ends" in m.body and "extend" in m.body and bool(m.mentions.get("user_ids")), 40
        )
        assert warning.mentions == {"user_ids": [stage.matrix_alice.user_id]}
        await stage.matrix_alice.send(stage.room, f"!rave extend !{mr.iid} 10s")
        await stage.matrix_ops.wait_for(stage.room, lambda m: "(10 s more)" in m.body, 20)
        stage.gitlab.comment(mr, stage.alice, "/sandbox extend 1h")
        ended = await stage.note_says(mr, "Sandbox ended: its time was up", 120)
        told = [note.body for note in stage.gitlab.notes(mr) if "This sandbox ends" in note.body]
        assert told
        assert all("@alice" in body for body in told)
        assert {mention.name for mention in stage.gitlab.mentions} == {"alice"}
        assert re.search(r"It lived (2[89]|3\d) s, used \d+ s of CPU time and at most \d.* of memory", ended.body), (
            ended.body
        )
        row = rows(stage, "SELECT expires_at - ready_at AS lived, end_reason, end_detail FROM sandboxes")[0]
        assert row["lived"] == 28_000_000  # as long as max_lifetime allows, and no longer
        assert (row["end_reason"], row["end_detail"]) == ("expired", "")  # nobody had to switch it off
        await stage.until(
            lambda: not rows(stage, "SELECT 1 FROM outbox WHERE delivered_at IS NULL"), 20, "still telling"
        )
        (card,) = await stage.cards(mr)
        assert "Ended at" in card.body
        assert_nothing_left(stage)


class Listener:
    """A service of the host, on every address of it."""

    def __init__(self, port: int) -> None:
        self._port = port

    def __enter__(self) -> None:
        script = (
            "import socket\n"
            f"s=socket.create_server(('0.0.0.0',{self._port}))\nprint('listening',flush=True)\n"
            "while True:\n    c,_=s.accept(); c.sendall(b'hello\\n'); c.close()\n"
        )
        self._process = subprocess.Popen(["python3", "-c", script], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        assert self._process.stdout.readline() == "listening\n"

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
