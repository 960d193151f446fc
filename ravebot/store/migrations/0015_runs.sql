-- Commands that people and agents run in sandboxes, and what they printed.

CREATE TABLE runs (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    sandbox_id      INTEGER NOT NULL,
    by_kind         TEXT NOT NULL,
    by              TEXT NOT NULL,
    command         TEXT NOT NULL,
    timeout_seconds INTEGER NOT NULL,
    state           TEXT NOT NULL,              -- waiting, running, done, cancelled, timeout, lost
    salt            TEXT NOT NULL,
    created_at      INTEGER NOT NULL,
    machine_id      INTEGER,                    -- with these: what it was given to, before it was
    restarts        INTEGER NOT NULL,
    boot            TEXT NOT NULL,
    sha             TEXT NOT NULL,
    started_at      INTEGER,
    ended_at        INTEGER,
    exit_code       INTEGER,
    why             TEXT NOT NULL,
    cancelled_by    TEXT NOT NULL,
    taken_bytes     INTEGER NOT NULL,           -- of its output in the guest
    characters      INTEGER NOT NULL,           -- of its output here
    cut             INTEGER NOT NULL
) STRICT;
CREATE INDEX runs_open ON runs (sandbox_id, id) WHERE state IN ('waiting', 'running');
CREATE INDEX runs_ended ON runs (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE run_output (
    run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    at     INTEGER NOT NULL,                    -- characters before it
    text   TEXT NOT NULL,
    PRIMARY KEY (run_id, at)
) STRICT;
