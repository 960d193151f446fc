-- `shown`: a digest of what the card shows, so that an edit that changes nothing is not sent; empty: not known.
-- `replaced`: whether this card took the place of one that could not be edited any more.
-- `posted_at`: NULL in rows of older versions.
ALTER TABLE cards ADD COLUMN shown TEXT NOT NULL DEFAULT '';
ALTER TABLE cards ADD COLUMN replaced INTEGER NOT NULL DEFAULT 0;
ALTER TABLE cards ADD COLUMN posted_at INTEGER;
CREATE INDEX cards_event ON cards (event_id);
-- A reply to a message of ours tells which sandbox is meant.
CREATE INDEX outbox_result ON outbox (result) WHERE sandbox_id IS NOT NULL;

-- The warnings that rooms show: each is edited when it is over.
CREATE TABLE room_warnings (
    sandbox_id INTEGER NOT NULL,
    room       TEXT NOT NULL,                   -- as configured
    threshold  INTEGER NOT NULL,                -- in seconds before the end
    room_id    TEXT NOT NULL,
    event_id   TEXT NOT NULL,
    is_over    INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (sandbox_id, room, threshold)
) STRICT;
