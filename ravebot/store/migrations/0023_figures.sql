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
