-- A random part of each row's own, filled when it is written: after a restored backup the same numbers are given out
-- again, and the far end would take what is new for what it has. Rows from before keep the ids that they were sent under.
ALTER TABLE outbox ADD COLUMN salt TEXT NOT NULL DEFAULT '';

-- Since when a row waits for its next attempt: a clock that was set back to before that ends the wait. Since when the rows
-- that wait now do so is not known: they are tried at once.
ALTER TABLE inbox ADD COLUMN postponed_at INTEGER NOT NULL DEFAULT 0;
UPDATE inbox SET next_attempt_at = 0 WHERE handled_at IS NULL;
ALTER TABLE outbox ADD COLUMN postponed_at INTEGER NOT NULL DEFAULT 0;
UPDATE outbox SET next_attempt_at = 0 WHERE delivered_at IS NULL;

-- When the far end was last asked for what it has not answered yet: it may still be at work on it. What the version before
-- asked last is not known, so it counts from the upgrade.
ALTER TABLE outbox ADD COLUMN last_attempt_at INTEGER;
UPDATE outbox SET last_attempt_at = CAST((julianday('now') - julianday('1970-01-01')) * 86400e6 AS INTEGER)
    WHERE target = 'gitlab' AND attempted_at IS NOT NULL AND delivered_at IS NULL;
