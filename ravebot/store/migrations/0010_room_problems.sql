-- What was wrong with a configured room when people were told of it; no row while the room works.
CREATE TABLE room_problems (
    room    TEXT PRIMARY KEY,                   -- as configured
    problem TEXT NOT NULL,
    since   INTEGER NOT NULL
) STRICT;
