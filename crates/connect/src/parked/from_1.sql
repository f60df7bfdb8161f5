-- From version 1, renamed to parked_1: it told ids apart without source and stream, had no positions (seq
-- stands for them, before all that is parked since), and an empty order key meant none.
INSERT INTO parked (id, source, stream, holds, order_key, place, reason, parked_at, bytes, change)
    SELECT id, source, stream,
        CASE WHEN order_key IS NULL THEN 0 WHEN order_key = x'' THEN 2 ELSE 1 END, nullif(order_key, x''),
        unhex(printf('%032x', seq)), reason, parked_at, bytes, change
    FROM parked_1 ORDER BY seq;
DROP TABLE parked_1;
