"""The jobs that `ravebot project init` writes: valid for GitLab, and what they do with what ravebot answers."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
import yaml

from ravebot.operations.projects.starting import JOBS, PIPELINE, template
from tests.support.pipelinejobs import OF_A_MERGE_REQUEST, LocalPipeline

pytestmark = pytest.mark.integration

TOKEN = "eyJ0.of-a.job"
STILL = (202, "state=starting\nwaits=its machine starts\n")
READY = (
    200,
    "state=ready\nurl=https://s.example.org:3000/\nssh=ssh -p 2200 alice@s.example.org\nexpires=2026-11-28\n",
)
NONE = (404, "state=none\nreason=group/app!42 has no sandbox: this is a draft\n")
FAILED = (
    422,
    "state=failed\nreason=the sandbox of group/app!42 failed: set-up ended with 3\nlog=make: gone\nlog=bye\n",
)
SCHEDULED = {"CI_PIPELINE_SOURCE": "schedule"}


@dataclass
class Answers:
    """A server that answers as it is told, in that order, the last one for ever; by method and path below /ci/."""

    told: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    def next(self, what: str, authorization: str, body: str) -> tuple[int, str]:
        self.asked.append((what, authorization, body))
        answers = self.told.get(what, [NONE])
        return answers.pop(0) if len(answers) > 1 else answers[0]


@pytest.fixture
def answers() -> Iterator[Answers]:
    known = Answers()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            what = f"{self.command} {self.path.partition('/ci/')[2]}"
            status, text = known.next(what, self.headers.get("Authorization", ""), body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = _answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        known.url = f"http://127.0.0.1:{server.server_address[1]}/rave"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield known
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> LocalPipeline:
    return LocalPipeline.begin(tmp_path_factory.mktemp("checkout") / "app", "https://rave.example.org")


@pytest.fixture(scope="module")
def jobs(pipeline: LocalPipeline) -> dict[str, Any]:
    return pipeline.expanded(OF_A_MERGE_REQUEST)


@dataclass(frozen=True)
class Ran:
    code: int
    printed: str
    arguments: str  # those of each curl
    dotenv: str


def run_job(
    jobs: dict[str, Any], name: str, shell: tuple[str, ...], answers: Answers, folder: Path, does: str = ""
) -> Ran:
    """As a runner does: the lines of `before_script` and `script` in one shell; curl notes its arguments, and `does`
    something else than curl if that is given."""
    job, tools = jobs[name], folder / "bin"
    tools.mkdir()
    noted, then = folder / "arguments", does or f'exec {shutil.which("curl")} "$@"'
    (tools / "curl").write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>{noted}\n{then}\n')
    (tools / "curl").chmod(0o755)
    done = subprocess.run(
        [*shell, "-c", "\n".join((*job["before_script"], *job["script"]))],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        env={
            "PATH": f"{tools}:{os.environ['PATH']}", "RAVEBOT_CI": f"{answers.url}/api/v1/ci", "RAVEBOT_TOKEN": TOKEN,
        },
    )  # fmt: skip
    dotenv = folder / "ravebot.env"
    return Ran(
        done.returncode,
        done.stdout + done.stderr,
        noted.read_text() if noted.exists() else "",
        dotenv.read_text() if dotenv.exists() else "",
    )


def test_gitlab_s_schema_takes_every_file_also_with_the_example_of_a_build(tmp_path: Path) -> None:
    header, _, plain = template(JOBS).partition("\n---\n")
    example = re.sub(r"^#(ravebot:build:|  .*)$", r"\1", plain, flags=re.MULTILINE)
    assert list(yaml.safe_load(example))[:2] == [".ravebot", "ravebot:build"]
    written = {"header": header, "jobs": plain, "example": example, "own": template(PIPELINE)}
    for name, text in written.items():
        (tmp_path / f"{name}.yml").write_text(text)

    def check(*names: str) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).parent / "check-jsonschema"
        schema = ("--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci")
        given = [str(tmp_path / f"{name}.yml") for name in names]
        return subprocess.run([program, *schema, *given], capture_output=True, text=True, check=False)

    done = check(*written)
    assert done.returncode == 0, done.stdout
    (tmp_path / "wrong.yml").write_text(plain.replace("action: stop", "action: end"))
    done = check("wrong")
    assert done.returncode == 1
    assert "ravebot:stop" in done.stdout


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (OF_A_MERGE_REQUEST, ["ravebot:review", "ravebot:stop"]),
        ({**OF_A_MERGE_REQUEST, "CI_MERGE_REQUEST_EVENT_TYPE": "merge_train"}, []),
        ({"CI_PIPELINE_SOURCE": "push"}, []),
        (SCHEDULED, ["ravebot:clean-up"]),
    ],
)
def test_a_pipeline_has_only_the_jobs_that_are_meant_for_it(
    pipeline: LocalPipeline, variables: dict[str, str], expected: list[str]
) -> None:
    done = pipeline.run("--list-csv", variables=variables)
    assert [line.partition(";")[0] for line in done.stdout.splitlines() if line.startswith("ravebot:")] == expected


@pytest.mark.parametrize("shell", [("dash",), ("busybox", "sh")], ids=" ".join)
def test_a_review_waits_says_what_it_waits_for_once_and_leaves_the_address(
    jobs: dict[str, Any], answers: Answers, tmp_path: Path, shell: tuple[str, ...]
) -> None:
    answers.told = {"POST sandbox": [STILL], "GET sandbox?wait=20": [STILL, STILL, READY]}
    ran = run_job(jobs, "ravebot:review", shell, answers, tmp_path)
    assert ran.code == 0, ran.printed
    assert ran.printed.count("starting: its machine starts") == 1
    assert "Web: https://s.example.org:3000/\nSSH: ssh -p 2200 alice@s.example.org\nIt ends: 2026-" in ran.printed
    assert ran.dotenv == "RAVEBOT_URL=https://s.example.org:3000/\n"
    assert [what for what, _, _ in answers.asked] == ["POST image", "POST sandbox", *["GET sandbox?wait=20"] * 3]
    assert {authorization for _, authorization, _ in answers.asked} == {f"Bearer {TOKEN}"}
    assert ran.arguments.count("\n") == 5
    assert TOKEN not in ran.arguments + ran.printed


@pytest.mark.parametrize("shell", [("dash",), ("busybox", "sh")], ids=" ".join)
@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        (FAILED, 1, "make: gone\nbye\nThe sandbox failed: the sandbox of group/app!42 failed: set-up ended with 3"),
        (NONE, 75, "There is no sandbox of this commit: group/app!42 has no sandbox: this is a draft"),
        ((409, "state=overtaken\nreason=newer\n"), 75, "There is no sandbox of this commit: newer"),
        ((401, "error=the token is too old\n"), 1, "ravebot does not tell: the token is too old"),
        ((500, "<h1>Oops</h1>"), 1, "ravebot does not tell: http://"),
    ],
)
def test_a_review_ends_with_the_reason(
    jobs: dict[str, Any],
    answers: Answers,
    tmp_path: Path,
    shell: tuple[str, ...],
    answer: tuple[int, str],
    code: int,
    says: str,
) -> None:
    answers.told = {"POST sandbox": [STILL], "GET sandbox?wait=20": [answer]}
    ran = run_job(jobs, "ravebot:review", shell, answers, tmp_path)
    assert (ran.code, ran.dotenv) == (code, "")
    assert says in ran.printed
    assert jobs["ravebot:review"]["allow_failure"] == {"exit_codes": [75]}


def test_a_job_asks_again_while_ravebot_is_away(jobs: dict[str, Any], answers: Answers, tmp_path: Path) -> None:
    answers.told = {"POST stop": [(503, "error=later\n"), (200, "state=stopping\nmessage=it ends\n")]}
    ran = run_job(jobs, "ravebot:stop", ("dash",), answers, tmp_path)
    assert (ran.code, ran.printed) == (0, "The sandbox ends: it ends\n")


def test_a_stop_and_a_clean_up_that_are_refused_fail_with_the_reason(
    jobs: dict[str, Any], answers: Answers, pipeline: LocalPipeline, tmp_path: Path
) -> None:
    refused = (403, "error=GitLab says that job 3 is success\n")
    answers.told = {"POST stop": [refused], "POST reconcile": [refused]}
    (tmp_path / "stop").mkdir()
    ran = run_job(jobs, "ravebot:stop", ("dash",), answers, tmp_path / "stop")
    assert (ran.code, ran.printed) == (1, "The sandbox was not stopped: GitLab says that job 3 is success\n")
    (tmp_path / "clean").mkdir()
    ran = run_job(pipeline.expanded(SCHEDULED), "ravebot:clean-up", ("dash",), answers, tmp_path / "clean")
    assert (ran.code, ran.printed) == (1, "ravebot does not take it: GitLab says that job 3 is success\n")


@pytest.mark.parametrize("shell", [("dash",), ("busybox", "sh")], ids=" ".join)
def test_a_build_announces_its_file_with_its_digest(
    jobs: dict[str, Any], answers: Answers, tmp_path: Path, shell: tuple[str, ...]
) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "sandbox.qcow2").write_bytes(b"QFI\xfb")
    answers.told = {"POST image": [(200, "state=noted\nmessage=it is known\n")]}
    name = 'build "arm", "sha256": "x & y=z'
    build = {**jobs["ravebot:review"], "script": [f"CI_JOB_NAME='{name}'", "announce image/sandbox.qcow2"]}
    ran = run_job({"build": build}, "build", shell, answers, tmp_path)
    assert (ran.code, ran.printed) == (0, "Image: it is known\n")
    ((_, _, body),) = answers.asked
    digest = hashlib.sha256(b"QFI\xfb").hexdigest()
    assert dict(parse_qsl(body)) == {"job": name, "path": "image/sandbox.qcow2", "sha256": digest}


@pytest.mark.parametrize("shell", [("dash",), ("busybox", "sh")], ids=" ".join)
def test_what_ravebot_says_is_printed_as_it_is_and_draws_nothing(
    jobs: dict[str, Any], answers: Answers, tmp_path: Path, shell: tuple[str, ...]
) -> None:
    told = "set-up said \\033[2J\\rall is well\\nThe sandbox is ready."
    answers.told = {"POST sandbox": [(422, f"state=failed\nreason={told}\x1b[2J\nlog=a\\tb\n")]}
    ran = run_job(jobs, "ravebot:review", shell, answers, tmp_path)
    assert (ran.code, ran.printed.splitlines()[-2:]) == (1, ["a\\tb", f"The sandbox failed: {told}[2J"])


@pytest.mark.parametrize(
    ("curl", "says"),
    [
        ("echo 'curl: (60) SSL certificate problem' >&2; printf '\nstatus 000\n'; exit 60", "SSL certificate problem"),
        ("echo 'curl: (6) Could not resolve host: x' >&2; printf '\nstatus 000\n'; exit 6", "Could not resolve host"),
        ("exit 127", "curl ended with 127"),
    ],
)
def test_a_review_ends_at_once_where_asking_again_can_not_help(
    jobs: dict[str, Any], answers: Answers, tmp_path: Path, curl: str, says: str
) -> None:
    ran = run_job(jobs, "ravebot:review", ("dash",), answers, tmp_path, curl)
    assert ran.code == 1
    assert ran.printed.startswith("ravebot does not tell: http://")
    assert says in ran.printed


@pytest.mark.parametrize("shell", [("dash",), ("busybox", "sh")], ids=" ".join)
@pytest.mark.parametrize(("curl_code", "passing"), [(3, False), (6, True), (35, True), (60, True), (77, True)])
def test_what_ends_a_job_at_first_passes_once_ravebot_has_answered(
    jobs: dict[str, Any], answers: Answers, tmp_path: Path, shell: tuple[str, ...], curl_code: int, passing: bool
) -> None:
    answers.told = {"POST stop": [(200, "state=stopping\nmessage=it ends\n")]}
    script = "ask POST stop; ask GET broken; is_passing"
    curl = (
        f'case "$*" in *broken*) printf "\\nstatus 000\\n"; exit {curl_code};; esac; exec {shutil.which("curl")} "$@"'
    )
    job = {**jobs["ravebot:review"], "script": [script]}
    assert (run_job({"job": job}, "job", shell, answers, tmp_path, curl).code == 0) == passing
    assert [what for what, _, _ in answers.asked] == ["POST stop"]


@pytest.mark.parametrize("shell", [("dash",), ("busybox", "sh")], ids=" ".join)
@pytest.mark.parametrize("status", ["000", "429", "502", "503", "504"])
@pytest.mark.parametrize(("seconds", "code"), [(170, 0), (190, 1)])
def test_three_minutes_without_an_answer_of_ravebot_s_own_are_enough(
    jobs: dict[str, Any],
    answers: Answers,
    tmp_path: Path,
    shell: tuple[str, ...],
    status: str,
    seconds: int,
    code: int,
) -> None:
    script = f"answered=$(($(date +%s) - {seconds})); ask GET sandbox; is_passing"
    job = {**jobs["ravebot:review"], "script": [script]}
    silent = f"echo '<h1>Bad Gateway</h1>'; printf '\nstatus {status}\n'; exit {7 if status == '000' else 0}"
    assert run_job({"job": job}, "job", shell, answers, tmp_path, silent).code == code


def test_ravebot_s_own_word_that_it_is_busy_is_an_answer(
    jobs: dict[str, Any], answers: Answers, tmp_path: Path
) -> None:
    answers.told = {"GET sandbox": [(503, "error=it restarts\n")]}
    job = {**jobs["ravebot:review"], "script": ["answered=$(($(date +%s) - 190)); ask GET sandbox; is_passing"]}
    assert run_job({"job": job}, "job", ("dash",), answers, tmp_path).code == 0


@pytest.mark.parametrize("shell", [("dash",), ("busybox", "sh")], ids=" ".join)
def test_a_review_asks_for_a_sandbox_until_ravebot_has_taken_it(
    jobs: dict[str, Any], answers: Answers, tmp_path: Path, shell: tuple[str, ...]
) -> None:
    away = (503, "error=it restarts\n")
    answers.told = {
        "POST image": [(200, "state=noted\nmessage=it is known\n")],
        "POST sandbox": [*[away] * 7, STILL],
        "GET sandbox?wait=20": [away, READY],
    }
    review = jobs["ravebot:review"]
    hasty = {**review, "before_script": [*review["before_script"], "sleep() { :; }"]}
    ran = run_job({"job": hasty}, "job", shell, answers, tmp_path)
    assert ran.code == 0, ran.printed
    assert "this job asks again: it restarts" in ran.printed
    assert [what for what, _, _ in answers.asked[1:]] == ["POST sandbox"] * 8 + ["GET sandbox?wait=20"] * 2


@pytest.mark.parametrize("patience", ["0.5", "1", "1e3"])
def test_patience_that_is_not_whole_minutes_is_refused(
    jobs: dict[str, Any], answers: Answers, tmp_path: Path, patience: str
) -> None:
    review = jobs["ravebot:review"]
    script = [re.sub(r'case "45" in', f'case "{patience}" in', line) for line in review["script"]]
    assert script != review["script"]
    ran = run_job({"x": {**review, "script": script}}, "x", ("dash",), answers, tmp_path)
    assert (ran.code, answers.asked) == (1, [])
    assert ran.printed.startswith("patience is a number of whole minutes, at least 2: correct it")


def test_without_an_id_token_the_job_says_what_is_missing(pipeline: LocalPipeline) -> None:
    done = pipeline.run("ravebot:stop", variables=OF_A_MERGE_REQUEST)
    assert "GitLab gave this job no ID token: id_tokens needs GitLab 15.7 or newer" in done.stdout
