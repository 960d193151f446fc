-- When a message with a merge key was queued last, whether it was delivered or not.
CREATE INDEX outbox_keyed ON outbox (merge_key, created_at) WHERE merge_key IS NOT NULL;
