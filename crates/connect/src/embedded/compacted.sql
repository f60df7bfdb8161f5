-- compacted.db: the newest event of each key, moved here with its place before its segment went.

CREATE TABLE event (
    place INTEGER PRIMARY KEY,
    id BLOB NOT NULL,
    time INTEGER NOT NULL,
    position BLOB NOT NULL,
    kind TEXT NOT NULL,
    key BLOB,
    headers TEXT,
    payload BLOB,
    moved_at INTEGER NOT NULL
) STRICT;

-- One event for each key of a partition; events without a key are all kept.
CREATE UNIQUE INDEX event_by_key ON event (place >> 47, key);

-- How long deletions are remembered is counted from when they came here.
CREATE INDEX event_deleted ON event (moved_at) WHERE payload IS NULL;

-- Events of each partition with offsets below next were moved.
CREATE TABLE moved (number INTEGER PRIMARY KEY, next INTEGER NOT NULL) STRICT;
