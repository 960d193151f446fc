-- How it is doing: what machines used, beside CPU time and memory.
ALTER TABLE machines ADD COLUMN disk_peak_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE machines ADD COLUMN received_bytes INTEGER NOT NULL DEFAULT 0;        -- by the guest, over its whole life
ALTER TABLE machines ADD COLUMN sent_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE machines ADD COLUMN received_before_restart INTEGER NOT NULL DEFAULT 0;
ALTER TABLE machines ADD COLUMN sent_before_restart INTEGER NOT NULL DEFAULT 0;
