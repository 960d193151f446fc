-- Images that jobs of merge requests' pipelines build: which one a commit's sandbox boots, and the files that are kept.

CREATE TABLE pipeline_images (
    project_id       INTEGER NOT NULL,
    iid              INTEGER NOT NULL,
    sha              TEXT NOT NULL,
    state            TEXT NOT NULL,              -- waiting, fetching, converting, ready, failed
    since            INTEGER NOT NULL,           -- its time begins: when its newest sandbox was asked for, or the file went
    changed_at       INTEGER NOT NULL,
    words            TEXT NOT NULL DEFAULT '',   -- what it waits for, or why there is none; for people
    announced_job    TEXT NOT NULL DEFAULT '',   -- by a job of the pipeline; empty: as `.rave.yml` says
    announced_path   TEXT NOT NULL DEFAULT '',
    announced_sha256 TEXT NOT NULL DEFAULT '',
    pipeline_id      INTEGER,
    job_project_id   INTEGER,                    -- where the pipeline runs: the merge request's project, or its fork
    job_id           INTEGER,
    job_name         TEXT NOT NULL DEFAULT '',
    job_url          TEXT NOT NULL DEFAULT '',
    path             TEXT NOT NULL DEFAULT '',   -- of the file among the job's artifacts
    digest           TEXT NOT NULL DEFAULT '',   -- its SHA-256, by us
    image            TEXT NOT NULL DEFAULT '',   -- the file that machines start from
    virtual_bytes    INTEGER NOT NULL DEFAULT 0,
    tries            INTEGER NOT NULL DEFAULT 0,
    begun            INTEGER NOT NULL DEFAULT 0, -- how often it was begun to be made, and nothing came of it
    looked_at        INTEGER,
    next_look_at     INTEGER,                    -- NULL: look at once
    PRIMARY KEY (project_id, iid, sha)
) STRICT;
CREATE INDEX pipeline_images_job ON pipeline_images (job_project_id, job_id);
CREATE INDEX pipeline_images_image ON pipeline_images (image) WHERE image <> '';

CREATE TABLE pipeline_image_files (
    project_id    INTEGER NOT NULL,              -- whose pipeline built it
    digest        TEXT NOT NULL,                 -- SHA-256 of the file that the job left
    image         TEXT NOT NULL UNIQUE,          -- the file that was made of it
    bytes         INTEGER NOT NULL,              -- that it takes on the disk
    virtual_bytes INTEGER NOT NULL,
    made_at       INTEGER NOT NULL,
    used_at       INTEGER NOT NULL,
    PRIMARY KEY (project_id, digest)
) STRICT;
