-- When a message with a merge key was queued last, whether it was delivered or not.
CREATE INDEX outbox_keyed ON outbox (merge_key, created_at) WHERE merge_key IS NOT NULL;

-- A held image is tried again: when its files or the configuration changed since `built_from`, or after a pause.
ALTER TABLE images ADD COLUMN told TEXT NOT NULL DEFAULT '';
ALTER TABLE images ADD COLUMN built_from TEXT NOT NULL DEFAULT '';
ALTER TABLE images ADD COLUMN tried_at INTEGER;
ALTER TABLE images ADD COLUMN trials INTEGER NOT NULL DEFAULT 0;
