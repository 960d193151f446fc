-- Conversations between people and coding agents, what was said, the turns of the agents, and what people were asked.

CREATE TABLE conversations (
    id         INTEGER PRIMARY KEY,
    agent      TEXT NOT NULL,                   -- as configured
    door       TEXT NOT NULL,                   -- matrix, gitlab, shell
    place      TEXT NOT NULL,                   -- the room's id; PROJECT!IID; empty
    thread     TEXT NOT NULL,                   -- the thread's root event; the discussion's id; a number
    own_thread INTEGER NOT NULL,                -- every message in the thread is for the agent
    project_id INTEGER,
    iid        INTEGER,
    paused     TEXT NOT NULL DEFAULT '',        -- why; empty: it is not
    created_at INTEGER NOT NULL,
    UNIQUE (door, place, thread, agent)
) STRICT;
CREATE INDEX conversations_mr ON conversations (project_id, iid);

CREATE TABLE agent_messages (
    id              INTEGER PRIMARY KEY,
    conversation_id INTEGER NOT NULL REFERENCES conversations (id),
    key             TEXT NOT NULL,              -- the Matrix event, the note's id, `turn ID`
    author_kind     TEXT NOT NULL,
    author          TEXT NOT NULL,
    root_kind       TEXT NOT NULL,              -- the first person in the chain
    root            TEXT NOT NULL,
    text            TEXT NOT NULL,
    said_at         INTEGER NOT NULL,
    hops            INTEGER NOT NULL,
    UNIQUE (conversation_id, key)
) STRICT;
CREATE INDEX agent_messages_day ON agent_messages (said_at);

CREATE TABLE agent_turns (
    id              INTEGER PRIMARY KEY,
    message_id      INTEGER NOT NULL REFERENCES agent_messages (id),
    conversation_id INTEGER NOT NULL REFERENCES conversations (id),
    state           TEXT NOT NULL,
    created_at      INTEGER NOT NULL,
    attempt         INTEGER NOT NULL,
    why             TEXT NOT NULL,
    process_id      INTEGER,                    -- set before its prompt is first written
    given_at        INTEGER,
    deadline        INTEGER,
    ended_at        INTEGER,
    answer          TEXT NOT NULL,
    cut             INTEGER NOT NULL,           -- characters of the answer that were left out
    status          TEXT NOT NULL,
    cancelled_by    TEXT NOT NULL,
    tries           INTEGER NOT NULL,
    next_try_at     INTEGER,
    sha             TEXT NOT NULL,              -- the code that the agent works on, as the conversation knows it
    UNIQUE (message_id, attempt)
) STRICT;
CREATE INDEX agent_turns_open ON agent_turns (conversation_id, id)
    WHERE state NOT IN ('done', 'failed', 'cancelled', 'uncertain', 'dead');
CREATE INDEX agent_turns_given_up ON agent_turns (id) WHERE state IN ('dead', 'failed', 'uncertain');
CREATE INDEX agent_turns_ended ON agent_turns (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE agent_processes (
    id              INTEGER PRIMARY KEY,
    conversation_id INTEGER NOT NULL REFERENCES conversations (id),
    sandbox_id      INTEGER NOT NULL,
    machine_id      INTEGER NOT NULL,
    restarts        INTEGER NOT NULL,           -- of the machine, when it began
    folder          TEXT NOT NULL UNIQUE,       -- in the guest; never used twice
    started_at      INTEGER NOT NULL,
    session         TEXT NOT NULL,
    can_load        INTEGER NOT NULL,
    "offset"        INTEGER NOT NULL,           -- bytes of its output that are handled
    ended_at        INTEGER,
    ended           TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX agent_processes_live ON agent_processes (conversation_id) WHERE ended_at IS NULL;

CREATE TABLE approvals (
    id              INTEGER PRIMARY KEY,
    kind            TEXT NOT NULL,
    state           TEXT NOT NULL,
    title           TEXT NOT NULL,
    payload         TEXT NOT NULL,              -- JSON: the whole of what is asked
    payload_hash    TEXT NOT NULL,
    asked_kind      TEXT NOT NULL,
    asked_by        TEXT NOT NULL,
    door            TEXT NOT NULL,
    place           TEXT NOT NULL,
    thread          TEXT NOT NULL,
    created_at      INTEGER NOT NULL,
    expires_at      INTEGER NOT NULL,
    salt            TEXT NOT NULL,
    project_id      INTEGER,
    iid             INTEGER,
    sandbox_id      INTEGER,
    turn_id         INTEGER,
    conversation_id INTEGER,
    head_sha        TEXT NOT NULL,
    only_by         TEXT NOT NULL,
    event_id        TEXT NOT NULL,
    decided_at      INTEGER,
    decided_kind    TEXT,
    decided_by      TEXT,
    attempted_at    INTEGER,                    -- since when its carrying out may be under way
    done_at         INTEGER,
    outcome         TEXT NOT NULL,
    tries           INTEGER NOT NULL,
    next_try_at     INTEGER,
    hinted_at       INTEGER                     -- when somebody without the right was told who may answer
) STRICT;
CREATE INDEX approvals_open ON approvals (expires_at) WHERE state = 'open';
CREATE INDEX approvals_undone ON approvals (id) WHERE state <> 'open' AND done_at IS NULL;
CREATE INDEX approvals_event ON approvals (place, event_id);
CREATE INDEX approvals_turn ON approvals (turn_id);
CREATE INDEX approvals_mr ON approvals (project_id, iid, kind);

-- What doors show of a turn; a copy, the turn is the truth.
CREATE TABLE shown_turns (
    turn_id       INTEGER PRIMARY KEY REFERENCES agent_turns (id),
    answer_event  TEXT NOT NULL,
    shown         TEXT NOT NULL,                -- digest of what the answer shows
    edits         INTEGER NOT NULL,
    edited_at     INTEGER,
    receipt       TEXT NOT NULL,
    receipt_event TEXT NOT NULL
) STRICT;

-- Our messages in conversations, so that a reply to one is known.
CREATE TABLE agent_events (
    place           TEXT NOT NULL,
    event_id        TEXT NOT NULL,
    conversation_id INTEGER NOT NULL REFERENCES conversations (id),
    PRIMARY KEY (place, event_id)
) STRICT;
CREATE INDEX agent_events_event ON agent_events (event_id);

-- How many messages each agent and each person had given to agents on a UTC day.
CREATE TABLE agent_budgets (
    day      TEXT NOT NULL,                     -- 2026-11-28
    kind     TEXT NOT NULL,                     -- agent; of a person gitlab, matrix, shell
    name     TEXT NOT NULL,
    messages INTEGER NOT NULL,
    PRIMARY KEY (day, kind, name)
) STRICT;

-- Agents that a person paused.
CREATE TABLE paused_agents (
    agent     TEXT PRIMARY KEY,
    paused_at INTEGER NOT NULL,
    by        TEXT NOT NULL
) STRICT;
