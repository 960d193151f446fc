"""Which answers to an approval count: the first valid one, of a person with the right, for exactly what was shown."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.agents.model import AgentDoor, Approval, ApprovalId, ApprovalKind, ApprovalState
from ravebot.agents.questions import hash_of, payload_of
from ravebot.agents.ruling import GivenAnswer, Rights, Ruling, is_person, judge
from ravebot.sandboxes.model import RAVEBOT, Actor
from tests.support.records import NOON, A, B, a_merge_request

ALICE, BOB = Actor("matrix", "@alice:example.org"), Actor("matrix", "@bob:example.org")
PAYLOAD = payload_of({"merge request": "group/app!1", "commit": A})
ASKED = Approval(
    ApprovalId(7), ApprovalKind.FORK, ApprovalState.OPEN, "May it run?", PAYLOAD, hash_of(PAYLOAD), RAVEBOT,
    AgentDoor.MATRIX, "!dev:example.org", "", NOON, NOON + timedelta(minutes=30), "salt",
    mr=a_merge_request().ref, head_sha=A,
)  # fmt: skip
YES, NO = GivenAnswer(yes=True), GivenAnswer(yes=False)
MAY = Rights(ALICE, allowed=True, here=True, head_sha=A)
SOON = NOON + timedelta(minutes=1)
S = ApprovalState


@pytest.mark.parametrize(
    ("approval", "answer", "rights", "ruling"),
    [
        (ASKED, YES, MAY, Ruling.GRANTED),
        (ASKED, NO, MAY, Ruling.DENIED),
        (ASKED, YES, replace(MAY, who=Actor("shell", "root")), Ruling.GRANTED),
        (ASKED, YES, replace(MAY, who=Actor("gitlab", "alice")), Ruling.GRANTED),
        (ASKED, YES, replace(MAY, who=Actor("agent", "coder")), Ruling.NO_PERSON),
        (ASKED, YES, replace(MAY, who=RAVEBOT), Ruling.NO_PERSON),
        (ASKED, NO, replace(MAY, who=Actor("gitlab", "project_7_bot_1a2b3c")), Ruling.NO_PERSON),
        (ASKED, YES, replace(MAY, allowed=False), Ruling.NO_RIGHT),
        (ASKED, NO, replace(MAY, allowed=False), Ruling.NO_RIGHT),
        (ASKED, YES, replace(MAY, here=False), Ruling.ELSEWHERE),
        (replace(ASKED, only_by=ALICE.name), YES, MAY, Ruling.GRANTED),
        (replace(ASKED, only_by=BOB.name), YES, MAY, Ruling.ANOTHER),
        (replace(ASKED, only_by=BOB.name), NO, MAY, Ruling.ANOTHER),
        (replace(ASKED, only_by="root"), YES, replace(MAY, who=Actor("shell", "root")), Ruling.ANOTHER),
        (replace(ASKED, state=S.GRANTED), YES, MAY, Ruling.ANSWERED),
        (replace(ASKED, state=S.DENIED), YES, MAY, Ruling.ANSWERED),
        (replace(ASKED, state=S.EXPIRED), YES, MAY, Ruling.TOO_LATE),
        (replace(ASKED, state=S.WITHDRAWN), YES, MAY, Ruling.WITHDRAWN),
        (replace(ASKED, expires_at=SOON), YES, MAY, Ruling.TOO_LATE),
        (ASKED, YES, replace(MAY, head_sha=B), Ruling.CHANGED),
        (ASKED, NO, replace(MAY, head_sha=B), Ruling.DENIED),
        (replace(ASKED, head_sha=""), YES, replace(MAY, head_sha=B), Ruling.GRANTED),
        (ASKED, GivenAnswer(yes=True, seen_hash=hash_of(PAYLOAD)), MAY, Ruling.GRANTED),
        (ASKED, GivenAnswer(yes=True, seen_hash=hash_of("another")), MAY, Ruling.CHANGED),
        (replace(ASKED, payload=PAYLOAD.replace("aaaa", "bbbb")), YES, MAY, Ruling.CHANGED),
    ],
)
def test_the_table(approval: Approval, answer: GivenAnswer, rights: Rights, ruling: Ruling) -> None:
    assert judge(approval, answer, rights, SOON) is ruling


people = st.sampled_from([ALICE, BOB, Actor("gitlab", "alice"), Actor("shell", "root"), Actor("agent", "coder"),
                          Actor("gitlab", "group_12_bot"), RAVEBOT])  # fmt: skip
approvals = st.builds(
    replace,
    st.just(ASKED),
    state=st.sampled_from(ApprovalState),
    kind=st.sampled_from(ApprovalKind),
    only_by=st.sampled_from(["", ALICE.name, BOB.name, "alice", "root"]),
    head_sha=st.sampled_from(["", A, B]),
    payload=st.sampled_from([PAYLOAD, PAYLOAD + " ", ""]),
)
answers = st.builds(GivenAnswer, yes=st.booleans(), seen_hash=st.sampled_from(["", hash_of(PAYLOAD), hash_of("x")]))
all_rights = st.builds(Rights, people, allowed=st.booleans(), here=st.booleans(), head_sha=st.sampled_from(["", A, B]))
moments = st.sampled_from([NOON, SOON, ASKED.expires_at - timedelta(microseconds=1), ASKED.expires_at,
                           ASKED.expires_at + timedelta(days=400)])  # fmt: skip


@given(approvals, answers, all_rights, moments)
def test_only_the_first_answer_in_time_of_who_may_to_what_was_shown_counts(
    approval: Approval, answer: GivenAnswer, rights: Rights, now: datetime
) -> None:
    ruling = judge(approval, answer, rights, now)
    counts = (
        approval.state is ApprovalState.OPEN
        and now < approval.expires_at
        and rights.allowed
        and rights.here
        and rights.who.kind in ("matrix", "gitlab", "shell")
        and "_bot" not in rights.who.name
        and approval.only_by in ("", rights.who.name)
        and not (approval.only_by == "root" and rights.who.kind == "shell")
    )
    same = (
        approval.payload == PAYLOAD
        and answer.seen_hash in ("", approval.payload_hash)
        and approval.head_sha in ("", rights.head_sha)
    )
    assert (ruling is Ruling.DENIED) == (counts and not answer.yes)
    assert (ruling is Ruling.GRANTED) == (counts and answer.yes and same)
    assert (ruling is Ruling.CHANGED) == (counts and answer.yes and not same)


@pytest.mark.parametrize(
    ("who", "person"),
    [
        ("alice", True),
        ("project_lead", True),
        ("robot_bot", True),
        ("project_12_bot", False),
        ("project_12_bot_9f86d0", False),
        ("group_3_bot_00", False),
        ("service_account_group_3_ff", False),
        ("service_account", False),
        ("service_accountant", True),
    ],
)
def test_the_users_of_gitlab_s_tokens_are_no_persons(who: str, person: bool) -> None:
    assert is_person(Actor("gitlab", who)) is person
