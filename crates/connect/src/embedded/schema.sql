-- One segment of the embedded bus. Headwater opens these files with SQLite; so may anyone:
--   sqlite3 -readonly segment-00000001.db "SELECT * FROM events WHERE stream = 'orders' LIMIT 10"

-- Which segment this is, and when it was begun (microseconds since 1970, as every time here).
CREATE TABLE segment (number INTEGER NOT NULL, begun_at INTEGER NOT NULL) STRICT;

-- Every stream of the bus. Its partition p has the number base + p. Retention: microseconds, bytes.
CREATE TABLE stream (
    name TEXT PRIMARY KEY,
    partitions INTEGER NOT NULL,
    base INTEGER NOT NULL,
    max_age INTEGER,
    max_bytes INTEGER,
    compact INTEGER NOT NULL
) STRICT;

-- What this segment holds of each partition: offsets first (inclusive) to next (exclusive), about how
-- many bytes, and the newest commit time.
CREATE TABLE partition (
    number INTEGER PRIMARY KEY,
    first INTEGER NOT NULL,
    next INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    newest INTEGER
) STRICT;

-- The events; place = partition number << 47 | offset, so each partition is appended at its right edge.
-- position: epoch (8 bytes, big-endian), then the connector's bytes. headers: JSON, [[name, value], ...];
-- a value is text, null, or, when it is not UTF-8, an array with its hexadecimal digits.
CREATE TABLE event (
    place INTEGER PRIMARY KEY,
    id BLOB NOT NULL,
    time INTEGER NOT NULL,
    position BLOB NOT NULL,
    kind TEXT NOT NULL,
    key BLOB,
    headers TEXT,
    payload BLOB
) STRICT;

-- How far each source has come: written in one transaction with the events up to there.
CREATE TABLE checkpoint (source TEXT PRIMARY KEY, position TEXT NOT NULL, state TEXT NOT NULL) STRICT;

-- The events, for people.
CREATE VIEW events AS
SELECT
    stream.name AS stream,
    (event.place >> 47) - stream.base AS partition,
    event.place & 0x7fffffffffff AS offset,
    strftime('%Y-%m-%dT%H:%M:%fZ', event.time / 1000000.0, 'unixepoch') AS time,
    event.kind,
    CAST(event.key AS TEXT) AS key,
    CAST(event.payload AS TEXT) AS payload,
    event.headers,
    lower(hex(event.id)) AS id
FROM event JOIN stream
    ON event.place >= stream.base << 47 AND event.place < (stream.base + stream.partitions) << 47;
