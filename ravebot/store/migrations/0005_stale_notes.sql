-- Up to which generation of earlier states (the row `stale_notes` of meta; 0 without one) their notes were looked for.
ALTER TABLE merge_requests ADD COLUMN note_sought INTEGER NOT NULL DEFAULT 0;
