-- Tokens of people and agents for the API, and the answers to requests that were sent with an idempotency key.

CREATE TABLE api_tokens (
    id         INTEGER PRIMARY KEY,
    hash       TEXT NOT NULL UNIQUE,            -- SHA-256 of the token; the token itself is stored nowhere
    owner      TEXT NOT NULL,                   -- GitLab user name
    name       TEXT NOT NULL,                   -- what it is for
    scopes     TEXT NOT NULL,                   -- JSON list
    projects   TEXT NOT NULL,                   -- JSON list of patterns
    agent      TEXT NOT NULL,                   -- whose inbox and answers; empty: no agent's
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at    INTEGER,                         -- written at most once a minute
    revoked_at INTEGER,
    revoked_by TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX api_tokens_owner ON api_tokens (owner);

CREATE TABLE api_answers (
    token_id INTEGER NOT NULL REFERENCES api_tokens (id),
    key      TEXT NOT NULL,
    request  TEXT NOT NULL,                     -- SHA-256 of what was asked
    status   INTEGER NOT NULL,
    body     TEXT NOT NULL,
    at       INTEGER NOT NULL,
    PRIMARY KEY (token_id, key)
) STRICT;
CREATE INDEX api_answers_at ON api_answers (at);
