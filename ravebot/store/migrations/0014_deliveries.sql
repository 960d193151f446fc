-- What agents that work elsewhere were given, by webhook or from their inbox.

CREATE TABLE deliveries (
    id           TEXT PRIMARY KEY,              -- random, so that a restored backup can't repeat one
    turn_id      INTEGER NOT NULL REFERENCES agent_turns (id),
    kind         TEXT NOT NULL,                 -- message, cancelled
    agent        TEXT NOT NULL,                 -- as configured
    channel      TEXT NOT NULL,                 -- webhook, inbox
    body         TEXT NOT NULL,                 -- JSON; empty once it is not needed any more
    created_at   INTEGER NOT NULL,
    accepted_at  INTEGER,                       -- the agent has it
    settled_at   INTEGER,                       -- it is not given again
    leased_until INTEGER,                       -- nobody else may take it before
    tries        INTEGER NOT NULL,
    next_try_at  INTEGER,
    sending_at   INTEGER,                       -- since when an attempt may be under way
    doubtful     INTEGER NOT NULL,              -- an attempt had no clear outcome: the agent may have it
    problem      TEXT NOT NULL,                 -- why the last attempt failed
    UNIQUE (turn_id, kind)
) STRICT;
CREATE INDEX deliveries_unsettled ON deliveries (channel, agent) WHERE settled_at IS NULL;

-- When an agent last asked for messages; written at most once a minute.
CREATE TABLE inbox_visits (
    agent TEXT PRIMARY KEY,
    at    INTEGER NOT NULL
) STRICT;
