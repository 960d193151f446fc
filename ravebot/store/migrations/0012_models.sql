-- What agents used of models. A reservation counts from before its request is sent, and stands unless it is settled.

ALTER TABLE agent_budgets ADD COLUMN tokens INTEGER NOT NULL DEFAULT 0;

-- The tokens that a sandbox used over its life, those that are reserved included.
CREATE TABLE sandbox_tokens (
    sandbox_id INTEGER PRIMARY KEY,
    tokens     INTEGER NOT NULL
) STRICT;

CREATE TABLE model_uses (
    id          INTEGER PRIMARY KEY,
    sandbox_id  INTEGER NOT NULL,
    turn_id     INTEGER NOT NULL,
    agent       TEXT NOT NULL,
    person_kind TEXT NOT NULL,
    person      TEXT NOT NULL,
    day         TEXT NOT NULL,                  -- the UTC day on which it counts
    model       TEXT NOT NULL,                  -- as configured
    reserved    INTEGER NOT NULL,
    used        INTEGER,                        -- NULL: the reservation stands
    began_at    INTEGER NOT NULL
) STRICT;
CREATE INDEX model_uses_began ON model_uses (began_at);

-- The turns whose people were told that a model is used up.
CREATE TABLE model_remarks (
    turn_id INTEGER PRIMARY KEY,
    said_at INTEGER NOT NULL
) STRICT;
