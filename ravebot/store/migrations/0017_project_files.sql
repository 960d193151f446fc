-- What `.rave.yml` says at a commit of a project, or at a branch whose merge request's own file does not count yet.

CREATE TABLE project_files (
    project_id INTEGER NOT NULL,
    at         TEXT NOT NULL,                   -- a commit's SHA, or refs/heads/BRANCH
    content    TEXT NOT NULL,                   -- its keys as JSON; empty: there is no file, or it can't be used
    problems   TEXT NOT NULL,                   -- why it can't be used: a JSON list of [line, column, text]
    read_at    INTEGER NOT NULL,
    PRIMARY KEY (project_id, at)
) STRICT;
CREATE INDEX project_files_read_at ON project_files (read_at);

ALTER TABLE machines ADD COLUMN vcpus INTEGER NOT NULL DEFAULT 0;   -- 0: as configured
ALTER TABLE merge_requests ADD COLUMN target_branch TEXT NOT NULL DEFAULT '';
ALTER TABLE merge_requests ADD COLUMN labels TEXT NOT NULL DEFAULT '[]';
