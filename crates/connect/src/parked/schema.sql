-- What is parked, in the order it was parked.
CREATE TABLE IF NOT EXISTS parked (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    source TEXT NOT NULL,
    stream TEXT NOT NULL,
    order_key BLOB, -- NULL: the whole stream is held
    reason TEXT NOT NULL,
    parked_at INTEGER NOT NULL, -- microseconds since 1970
    bytes INTEGER NOT NULL,
    change BLOB NOT NULL -- last: what is behind a large value is slow to reach
) STRICT;
CREATE INDEX IF NOT EXISTS parked_by_key ON parked (source, stream, order_key, seq);

-- The bytes of all, kept by the triggers.
CREATE TABLE IF NOT EXISTS total (bytes INTEGER NOT NULL) STRICT;
INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM total);
CREATE TRIGGER IF NOT EXISTS parked_added AFTER INSERT ON parked
BEGIN UPDATE total SET bytes = bytes + new.bytes; END;
CREATE TRIGGER IF NOT EXISTS parked_removed AFTER DELETE ON parked
BEGIN UPDATE total SET bytes = bytes - old.bytes; END;
