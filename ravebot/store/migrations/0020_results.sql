-- What set-up and tests gave, command by command, and what their JUnit reports say.

CREATE TABLE command_results (
    sandbox_id INTEGER NOT NULL REFERENCES sandboxes (id),
    attempt    INTEGER NOT NULL,
    stage      TEXT NOT NULL,
    position   INTEGER NOT NULL,                -- in the list of the stage's commands, from 0
    what       TEXT NOT NULL,
    ok         INTEGER,                         -- NULL until it ended
    seconds    REAL NOT NULL,
    tail       TEXT NOT NULL,                   -- why it failed and the end of what it printed; else empty
    at         INTEGER NOT NULL,                -- when it began
    PRIMARY KEY (sandbox_id, attempt, stage, position)
) STRICT;

CREATE TABLE test_reports (
    sandbox_id INTEGER NOT NULL REFERENCES sandboxes (id),
    attempt    INTEGER NOT NULL,
    report     TEXT NOT NULL,                   -- JSON: counts, the first failed tests, what could not be read
    at         INTEGER NOT NULL,
    PRIMARY KEY (sandbox_id, attempt)
) STRICT;
