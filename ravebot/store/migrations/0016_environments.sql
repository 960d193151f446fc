-- What GitLab is shown of a merge request's sandbox: an environment, deployments and a commit status. One row each.

CREATE TABLE environments (
    project_id           INTEGER NOT NULL,
    iid                  INTEGER NOT NULL,
    changes              INTEGER NOT NULL DEFAULT 1,   -- grows with each change of the sandbox
    settled              INTEGER NOT NULL DEFAULT 0,   -- its value when there was nothing left to do
    looked_at            INTEGER,
    next_at              INTEGER,                      -- NULL: look at once
    asked                TEXT NOT NULL DEFAULT '',     -- a request that GitLab may carry out, or may have carried out
    asked_what           TEXT NOT NULL DEFAULT '',
    asked_at             INTEGER,
    status_asked         TEXT NOT NULL DEFAULT '',     -- the same, of a commit status: its SHA and state
    status_asked_at      INTEGER,
    environment_id       INTEGER,
    state                TEXT NOT NULL DEFAULT 'none', -- none, available, stopping, stopped
    external_url         TEXT NOT NULL DEFAULT '',
    seen_at              INTEGER,                      -- when it was last seen available
    deployment_id        INTEGER,
    deployment_sandbox   INTEGER,
    deployment_sha       TEXT NOT NULL DEFAULT '',
    deployment_status    TEXT NOT NULL DEFAULT '',
    status_sha           TEXT NOT NULL DEFAULT '',
    status_state         TEXT NOT NULL DEFAULT '',
    pipeline_id          INTEGER,                      -- the one that GitLab put the status into
    environment_refused  TEXT NOT NULL DEFAULT '',     -- why GitLab refuses it, for people
    environment_failures INTEGER NOT NULL DEFAULT 0,
    environment_since    INTEGER,                      -- with the next: a pause after a failure
    environment_until    INTEGER,
    status_refused       TEXT NOT NULL DEFAULT '',
    status_failures      INTEGER NOT NULL DEFAULT 0,
    status_since         INTEGER,
    status_until         INTEGER,
    PRIMARY KEY (project_id, iid)
) STRICT;
CREATE INDEX environments_unsettled ON environments (project_id, looked_at) WHERE changes <> settled;
CREATE INDEX environments_available ON environments (project_id) WHERE state = 'available';
INSERT INTO environments (project_id, iid) SELECT DISTINCT project_id, iid FROM sandboxes WHERE state <> 'ended';
