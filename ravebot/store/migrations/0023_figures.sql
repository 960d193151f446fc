-- How it is doing: what machines used, beside CPU time and memory.
ALTER TABLE machines ADD COLUMN disk_peak_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE machines ADD COLUMN received_bytes INTEGER NOT NULL DEFAULT 0;        -- by the guest, over its whole life
ALTER TABLE machines ADD COLUMN sent_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE machines ADD COLUMN received_before_restart INTEGER NOT NULL DEFAULT 0;
ALTER TABLE machines ADD COLUMN sent_before_restart INTEGER NOT NULL DEFAULT 0;

-- Told once: what was told about each week.
CREATE TABLE weekly (
    id   INTEGER PRIMARY KEY,                   -- the order in which weeks were told, whatever the clock said
    what TEXT NOT NULL,
    week TEXT NOT NULL,                         -- of ISO 8601, in UTC: 2026-W48
    UNIQUE (what, week)
) STRICT;
ALTER TABLE machines ADD COLUMN memory_used_bytes INTEGER NOT NULL DEFAULT 0;     -- as at the last look
ALTER TABLE machines ADD COLUMN disk_used_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE machines ADD COLUMN measured_at INTEGER;                              -- with the next: to see how busy it is
ALTER TABLE machines ADD COLUMN measured_cpu_seconds REAL NOT NULL DEFAULT 0;
ALTER TABLE machines ADD COLUMN busy_since INTEGER;                               -- since when it uses all its processors
