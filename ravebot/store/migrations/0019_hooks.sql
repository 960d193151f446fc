-- How the webhook of each project was at the last look, and when operators were told of a trouble.
CREATE TABLE hooks (
    project   TEXT PRIMARY KEY,                 -- its path
    condition TEXT NOT NULL,
    told_at   INTEGER                           -- of a trouble that is not over yet, or was one lately
) STRICT;
