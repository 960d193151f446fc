-- Why the far end refused a message when it last answered; the message is tried again.
ALTER TABLE outbox ADD COLUMN refused TEXT;
