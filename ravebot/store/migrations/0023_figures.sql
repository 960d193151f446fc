-- How it is doing: what machines used, beside CPU time and memory.
ALTER TABLE machines ADD COLUMN disk_peak_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE machines ADD COLUMN received_bytes INTEGER NOT NULL DEFAULT 0;        -- by the guest, over its whole life
ALTER TABLE machines ADD COLUMN sent_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE machines ADD COLUMN received_before_restart INTEGER NOT NULL DEFAULT 0;
ALTER TABLE machines ADD COLUMN sent_before_restart INTEGER NOT NULL DEFAULT 0;
ALTER TABLE machines ADD COLUMN memory_used_bytes INTEGER NOT NULL DEFAULT 0;     -- as at the last look
ALTER TABLE machines ADD COLUMN disk_used_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE machines ADD COLUMN measured_at INTEGER;                              -- with the next: to see how busy it is
ALTER TABLE machines ADD COLUMN measured_cpu_seconds REAL NOT NULL DEFAULT 0;
ALTER TABLE machines ADD COLUMN busy_since INTEGER;                               -- since when it uses all its processors
CREATE INDEX agent_turns_over ON agent_turns (state) WHERE ended_at IS NOT NULL;   -- counted every few seconds

-- Told once: what was told about each week.
CREATE TABLE weekly (
    id   INTEGER PRIMARY KEY,                   -- the order in which weeks were told, whatever the clock said
    what TEXT NOT NULL,
    week TEXT NOT NULL,                         -- of ISO 8601, in UTC: 2026-W48
    UNIQUE (what, week)
) STRICT;

-- Told once: alerts of Prometheus, as Alertmanager tells of them.
CREATE TABLE alerts (
    id          INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL,                  -- of the alert's labels, by Alertmanager
    starts_at   INTEGER NOT NULL,
    ends_at     INTEGER,                        -- NULL: it fires, or nobody says when it ended
    status      TEXT NOT NULL,                  -- firing, resolved
    name        TEXT NOT NULL,
    severity    TEXT NOT NULL,
    summary     TEXT NOT NULL,
    description TEXT NOT NULL,
    runbook     TEXT NOT NULL,
    first_at    INTEGER NOT NULL,               -- when we heard of it first
    seen_at     INTEGER NOT NULL,               -- and last
    resolved_at INTEGER,                        -- when we heard that it is over
    room        TEXT NOT NULL,                  -- the configured room that is told of it
    room_id     TEXT NOT NULL DEFAULT '',       -- where the message is
    event_id    TEXT NOT NULL DEFAULT '',       -- of the message; empty: not sent yet
    shown       TEXT NOT NULL DEFAULT '',       -- a digest of what it shows; empty: not known
    UNIQUE (fingerprint, starts_at)
) STRICT;
CREATE INDEX alerts_firing ON alerts (seen_at) WHERE status = 'firing';
CREATE INDEX alerts_resolved ON alerts (resolved_at) WHERE status = 'resolved';
