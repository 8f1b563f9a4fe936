-- What each node could not see: with anything here, "nobody would break" can't be said of it. Counts are since each run's start.
SELECT host, max(JSONExtractUInt(line, 'ring_buffer')) AS ring_buffer, max(JSONExtractUInt(line, 'unattributed')) AS unattributed,
  max(JSONExtractUInt(line, 'evicted')) AS evicted, max(JSONExtractUInt(line, 'truncated')) AS truncated
FROM imds_records WHERE record = 'loss' GROUP BY host
HAVING ring_buffer + unattributed + evicted + truncated > 0 ORDER BY host;
