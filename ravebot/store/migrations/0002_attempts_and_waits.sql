-- A random part of each row's own, filled when it is written: after a restored backup the same numbers are given out
-- again, and the far end would take what is new for what it has. Rows from before keep the ids that they were sent under.
ALTER TABLE outbox ADD COLUMN salt TEXT NOT NULL DEFAULT '';
