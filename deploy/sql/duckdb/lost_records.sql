-- Losses and coverage gaps of each node. A node with a row here can't be called safe. Counts are since the start of each run.
SELECT host, max(CAST(line->>'$.ring_buffer' AS UBIGINT)) AS ring_buffer, max(CAST(line->>'$.unattributed' AS UBIGINT)) AS unattributed,
  max(CAST(line->>'$.evicted' AS UBIGINT)) AS evicted, max(CAST(line->>'$.truncated' AS UBIGINT)) AS truncated
FROM imds_records WHERE record = 'loss' GROUP BY host
HAVING ring_buffer + unattributed + evicted + truncated > 0 ORDER BY host;
