-- Moments are INTEGER microseconds since 1970, UTC. Sizes are bytes. JSON is UTF-8 text.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- What was asked of us, exactly as it came, until it was acted on.
CREATE TABLE inbox (
    id              INTEGER PRIMARY KEY,
    source          TEXT NOT NULL,              -- gitlab, matrix
    delivery_key    TEXT NOT NULL,              -- the same delivery twice is one row
    lane            TEXT NOT NULL,              -- order is kept within a lane
    kind            TEXT NOT NULL,
    body            TEXT NOT NULL,
    received_at     INTEGER NOT NULL,
    attempts        INTEGER NOT NULL DEFAULT 0,
    next_attempt_at INTEGER NOT NULL DEFAULT 0,
    handled_at      INTEGER,
    outcome         TEXT,
    UNIQUE (source, delivery_key)
) STRICT;
CREATE INDEX inbox_pending ON inbox (source, lane, id) WHERE handled_at IS NULL;
CREATE INDEX inbox_handled ON inbox (handled_at) WHERE handled_at IS NOT NULL;

CREATE TABLE merge_requests (
    project_id        INTEGER NOT NULL,
    iid               INTEGER NOT NULL,
    project_path      TEXT NOT NULL,
    title             TEXT NOT NULL,
    web_url           TEXT NOT NULL,
    source_branch     TEXT NOT NULL,
    source_project_id INTEGER NOT NULL,
    head_sha          TEXT NOT NULL,
    author_id         INTEGER NOT NULL,
    author_username   TEXT NOT NULL,
    people            TEXT NOT NULL,            -- JSON [[id, username], …]
    draft             INTEGER NOT NULL,
    state             TEXT NOT NULL,
    updated_at        INTEGER,                  -- by GitLab's clock: older news than this is stale
    approved_sha      TEXT,
    note_id           INTEGER,
    last_comment      INTEGER,                  -- the newest that polling has seen
    PRIMARY KEY (project_id, iid)
) STRICT;

CREATE TABLE machines (
    id                  INTEGER PRIMARY KEY,
    name                TEXT NOT NULL UNIQUE,   -- never used twice
    uuid                TEXT NOT NULL UNIQUE,
    state               TEXT NOT NULL,
    image               TEXT NOT NULL,
    address             TEXT NOT NULL,
    mac                 TEXT NOT NULL,
    tap                 TEXT NOT NULL,
    memory_bytes        INTEGER NOT NULL,
    disk_bytes          INTEGER NOT NULL,
    created_at          INTEGER NOT NULL,
    state_since         INTEGER NOT NULL,
    sandbox_id          INTEGER,
    host_keys           TEXT NOT NULL DEFAULT '[]',
    restarts            INTEGER NOT NULL DEFAULT 0,
    create_attempted_at INTEGER,
    booted_at           INTEGER,
    cpu_seconds         REAL NOT NULL DEFAULT 0,
    memory_peak_bytes   INTEGER NOT NULL DEFAULT 0,
    silent_since        INTEGER,                -- since when the guest agent was seen not to answer
    silent_seen_at      INTEGER,                -- the last of these looks
    unhealthy_told      INTEGER NOT NULL DEFAULT 0,
    paused_since        INTEGER,
    cpu_before_restart  REAL NOT NULL DEFAULT 0,
    paused_by_us        INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX machines_live ON machines (id) WHERE state <> 'gone';
CREATE INDEX machines_sandbox ON machines (sandbox_id);
CREATE UNIQUE INDEX machines_address ON machines (address) WHERE state <> 'gone';
CREATE UNIQUE INDEX machines_tap ON machines (tap) WHERE state <> 'gone';

CREATE TABLE sandboxes (
    id               INTEGER PRIMARY KEY,
    project_id       INTEGER NOT NULL,
    iid              INTEGER NOT NULL,
    state            TEXT NOT NULL,
    wait_reason      TEXT NOT NULL,             -- why it is queued, beyond its turn
    not_before       INTEGER,                   -- backoff after a failed build
    requested_kind   TEXT NOT NULL,
    requested_by     TEXT NOT NULL,
    created_at       INTEGER NOT NULL,
    state_since      INTEGER NOT NULL,
    sha              TEXT NOT NULL,
    running_sha      TEXT,
    machine_id       INTEGER REFERENCES machines (id),
    stage            TEXT,
    stage_started_at INTEGER,
    attempt          INTEGER NOT NULL,
    stage_attempt    INTEGER NOT NULL,
    ssh_port         INTEGER,
    web_port         INTEGER,
    web_scheme       TEXT,
    ports_open       INTEGER NOT NULL DEFAULT 0,
    ready_at         INTEGER,
    expires_at       INTEGER,
    end_reason       TEXT,
    end_detail       TEXT NOT NULL,
    notice           TEXT NOT NULL,             -- what went wrong with the last update
    ended_at         INTEGER,
    refreshed_at     INTEGER,
    FOREIGN KEY (project_id, iid) REFERENCES merge_requests (project_id, iid)
) STRICT;
-- One sandbox per merge request; a new one may queue behind one that is stopping.
CREATE UNIQUE INDEX sandboxes_one_per_mr ON sandboxes (project_id, iid)
    WHERE state IN ('queued', 'starting', 'ready');
CREATE UNIQUE INDEX sandboxes_ssh_port ON sandboxes (ssh_port) WHERE state <> 'ended';
CREATE UNIQUE INDEX sandboxes_web_port ON sandboxes (web_port) WHERE state <> 'ended';
CREATE INDEX sandboxes_live ON sandboxes (id) WHERE state <> 'ended';
CREATE INDEX sandboxes_mr ON sandboxes (project_id, iid, id);

CREATE TABLE warnings (
    sandbox_id INTEGER NOT NULL REFERENCES sandboxes (id),
    threshold  INTEGER NOT NULL,                -- seconds before expiry
    PRIMARY KEY (sandbox_id, threshold)
) STRICT;

CREATE TABLE stage_results (
    id         INTEGER PRIMARY KEY,
    sandbox_id INTEGER NOT NULL REFERENCES sandboxes (id),
    attempt    INTEGER NOT NULL,
    sha        TEXT NOT NULL,
    stage      TEXT NOT NULL,
    ok         INTEGER NOT NULL,
    seconds    REAL NOT NULL,
    tail       TEXT NOT NULL,
    at         INTEGER NOT NULL
) STRICT;
CREATE INDEX stage_results_sandbox ON stage_results (sandbox_id, id);

-- Things of ours that have no row: acted on at the second sighting.
CREATE TABLE sightings (
    kind       TEXT NOT NULL,                   -- machine, volume
    name       TEXT NOT NULL,
    first_seen INTEGER NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT;

CREATE TABLE outbox (
    -- Never given out twice, though old rows are forgotten: what is sent carries it, so that twice is once.
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    target          TEXT NOT NULL,              -- matrix, gitlab
    lane            TEXT NOT NULL,              -- room, or project!iid: order is kept within it
    kind            TEXT NOT NULL,
    merge_key       TEXT,                       -- unsent rows with the same one are sent as one
    sandbox_id      INTEGER,
    body            TEXT NOT NULL,
    created_at      INTEGER NOT NULL,
    attempted_at    INTEGER,
    attempts        INTEGER NOT NULL DEFAULT 0,
    next_attempt_at INTEGER NOT NULL DEFAULT 0,
    delivered_at    INTEGER,
    result          TEXT
) STRICT;
CREATE INDEX outbox_pending ON outbox (target, lane, id) WHERE delivered_at IS NULL;
CREATE INDEX outbox_merge ON outbox (merge_key) WHERE delivered_at IS NULL;
CREATE INDEX outbox_delivered ON outbox (delivered_at) WHERE delivered_at IS NOT NULL;

CREATE TABLE cards (
    sandbox_id INTEGER NOT NULL,
    room       TEXT NOT NULL,                   -- as configured
    room_id    TEXT NOT NULL,                   -- in which it was posted: the name may mean another room by now
    event_id   TEXT NOT NULL,
    PRIMARY KEY (sandbox_id, room)
) STRICT;

CREATE TABLE rooms (
    name    TEXT PRIMARY KEY,                   -- as configured: alias or id
    room_id TEXT NOT NULL
) STRICT;

CREATE TABLE connections (
    sandbox_id INTEGER NOT NULL REFERENCES sandboxes (id),
    service    TEXT NOT NULL,                   -- ssh, web
    source     TEXT NOT NULL,
    first_at   INTEGER NOT NULL,
    last_at    INTEGER NOT NULL,
    count      INTEGER NOT NULL,
    dropped    INTEGER NOT NULL,
    bytes      INTEGER NOT NULL,
    PRIMARY KEY (sandbox_id, service, source)
) STRICT;

CREATE TABLE events (
    id         INTEGER PRIMARY KEY,
    at         INTEGER NOT NULL,
    kind       TEXT NOT NULL,
    actor_kind TEXT NOT NULL,
    actor      TEXT NOT NULL,
    project_id INTEGER,
    iid        INTEGER,
    sandbox_id INTEGER,
    machine_id INTEGER,
    data       TEXT NOT NULL,
    hash       TEXT NOT NULL                    -- SHA-256 over the hash before and this row
) STRICT;
CREATE INDEX events_sandbox ON events (sandbox_id, id);
CREATE TRIGGER events_are_never_changed BEFORE UPDATE ON events
    BEGIN SELECT RAISE (ABORT, 'the event log is append-only'); END;
CREATE TRIGGER events_are_never_removed BEFORE DELETE ON events
    BEGIN SELECT RAISE (ABORT, 'the event log is append-only'); END;

CREATE TABLE images (
    image    TEXT PRIMARY KEY,
    failures INTEGER NOT NULL,                  -- in a row
    held     TEXT NOT NULL                      -- why nothing is built from it until a person says retry
) STRICT;
