-- What each node could not see: with anything here, "nobody would break" can't be said of it. Counts are since each run's start.
SELECT host, max(CAST(line->>'$.ring_buffer' AS UBIGINT)) AS ring_buffer, max(CAST(line->>'$.unattributed' AS UBIGINT)) AS unattributed,
  max(CAST(line->>'$.evicted' AS UBIGINT)) AS evicted, max(CAST(line->>'$.truncated' AS UBIGINT)) AS truncated
FROM imds_records WHERE record = 'loss' GROUP BY host
HAVING ring_buffer + unattributed + evicted + truncated > 0 ORDER BY host;
