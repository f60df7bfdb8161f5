-- Version 2: what is parked.
CREATE TABLE parked (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL,
    source TEXT NOT NULL,
    stream TEXT NOT NULL,
    holds INTEGER NOT NULL, -- what waits behind it; 0: the whole stream, 1: its order key, 2: nothing
    order_key BLOB, -- NULL without one
    place BLOB NOT NULL, -- the position: its epoch (8 bytes, the highest first), then its bytes
    reason TEXT NOT NULL,
    parked_at INTEGER NOT NULL, -- microseconds since 1970
    bytes INTEGER NOT NULL,
    change BLOB NOT NULL, -- last: what is behind a large value is slow to reach
    UNIQUE (source, stream, id)
) STRICT;
CREATE INDEX parked_by_line ON parked (source, stream, holds, order_key, place, seq);

-- The bytes of all, kept by the triggers.
CREATE TABLE IF NOT EXISTS total (bytes INTEGER NOT NULL) STRICT;
DELETE FROM total;
INSERT INTO total VALUES (0);
CREATE TRIGGER parked_added AFTER INSERT ON parked
BEGIN UPDATE total SET bytes = bytes + new.bytes; END;
CREATE TRIGGER parked_removed AFTER DELETE ON parked
BEGIN UPDATE total SET bytes = bytes - old.bytes; END;
