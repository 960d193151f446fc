"""Whether a message may be given to an agent: the intersection of everybody's rights, of any combination."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravebot.agents.rights import by_configuration, chain, may_ask
from ravebot.commands.people import People
from ravebot.commands.permissions import Decision
from ravebot.config.model import AgentConfig, Config
from ravebot.errors import NotFound, Unavailable
from ravebot.sandboxes.model import Actor, MergeRequest
from ravebot.store.database import Database
from tests.support.clock import ManualClock
from tests.support.levels import Levels
from tests.support.records import a_merge_request, make_config

MR = a_merge_request()
FORK = a_merge_request(source_project_id=8)
GINA = Actor("matrix", "@gina:example.org")
DEVELOPER, GUEST = 30, 10


def agent(**facts: object) -> AgentConfig:
    known = {"name": "coder", "owner": "alice", "projects": ["group/*"], "acp": {"command": ["agent"]}}
    return AgentConfig.model_validate({**known, **facts})


def config_with(folder: Path, *agents: AgentConfig) -> Config:
    return make_config(folder).model_copy(update={"agents": agents})


async def ask(folder: Path, gitlab: Levels, root: Actor = GINA, **where: bool) -> Decision:
    config = config_with(folder, agent())
    people = People(config, Database(folder / "none.db", ManualClock()), gitlab)
    return await may_ask(people, config, "coder", root, MR, **where)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=6))
def test_a_chain_may_what_all_of_it_may(links: list[tuple[bool, bool]]) -> None:
    decision = chain("coder", "alice", [(owner, Decision(may, f"link {may}.")) for owner, may in links])
    assert decision.allowed is all(may for _, may in links)


@pytest.mark.parametrize("asker", [0, GUEST, 20, DEVELOPER, 40])
@pytest.mark.parametrize("owner", [0, GUEST, 20, DEVELOPER, 40])
async def test_asker_and_owner_both_need_the_role(tmp_path: Path, asker: int, owner: int) -> None:
    decision = await ask(tmp_path, Levels({"gina": asker, "alice": owner}))
    assert decision.allowed is (asker >= DEVELOPER and owner >= DEVELOPER)
    assert decision.allowed or "Developer" in decision.advice


async def test_a_refusal_names_whose_right_is_missing(tmp_path: Path) -> None:
    decision = await ask(tmp_path, Levels({"gina": DEVELOPER, "alice": GUEST}))
    assert decision.rule == "coder may do at most what its owner alice may: alice is Guest in group/app."
    assert (await ask(tmp_path, Levels({"gina": GUEST, "alice": GUEST}))).rule == "gina is Guest in group/app."


async def test_a_room_that_is_not_mapped_is_refused_whoever_asks(tmp_path: Path) -> None:
    everybody = Levels({"gina": 40, "alice": 40})
    assert not (await ask(tmp_path, everybody, mapped=False)).allowed
    assert (await ask(tmp_path, everybody, mapped=False, direct=True)).allowed


async def test_at_the_shell_and_on_gitlab_the_owners_right_counts_too(tmp_path: Path) -> None:
    for root in (Actor("shell", "root"), Actor("gitlab", "gina")):
        assert (await ask(tmp_path, Levels({"gina": 30, "alice": 30}), root)).allowed
        assert not (await ask(tmp_path, Levels({"gina": 30, "alice": 20}), root)).allowed


async def test_an_agent_is_no_person_whose_right_could_count(tmp_path: Path) -> None:
    assert not (await ask(tmp_path, Levels({"coder": 40, "alice": 40}), Actor("agent", "coder"))).allowed


async def test_while_gitlab_is_away_nobody_is_refused_and_a_project_that_is_gone_is(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        await ask(tmp_path, Levels({}, Unavailable("GitLab is away")))
    gone = await ask(tmp_path, Levels({}, NotFound("project 7")))
    assert not gone.allowed
    assert "no such project" in gone.rule


@pytest.mark.parametrize(
    ("facts", "mr", "allowed", "word"),
    [
        ({}, MR, True, ""),
        ({"projects": ["other/*"]}, MR, False, "does not serve group/app"),
        ({"projects": []}, MR, False, "does not serve"),
        ({}, FORK, False, "off in forks"),
        ({"forks": True}, FORK, True, ""),
    ],
)
def test_the_configuration_says_where_an_agent_works(
    facts: dict[str, object], mr: MergeRequest, allowed: bool, word: str
) -> None:
    decision = by_configuration(agent(**facts), "coder", mr)
    assert decision.allowed is allowed
    assert allowed or (word in decision.rule and decision.advice)


def test_an_agent_that_is_not_configured_any_more_is_refused() -> None:
    assert "No agent called coder" in by_configuration(None, "coder", MR).rule
