-- Losses and coverage gaps of each node. A node with a row here can't be called safe. Counts are since the start of each run.
SELECT host, max(JSONExtractUInt(line, 'ring_buffer')) AS ring_buffer, max(JSONExtractUInt(line, 'unattributed')) AS unattributed,
  max(JSONExtractUInt(line, 'evicted')) AS evicted, max(JSONExtractUInt(line, 'truncated')) AS truncated
FROM imds_records WHERE record = 'loss' GROUP BY host
HAVING ring_buffer + unattributed + evicted + truncated > 0 ORDER BY host;
