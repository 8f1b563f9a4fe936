-- Minimum hop limit for each workload.
SELECT workload,
  max(CASE WHEN request_ttl <= 64 THEN 64 WHEN request_ttl <= 128 THEN 128 ELSE 255 END - request_ttl) + 1 AS hop_limit,
  count(*) AS token_requests
FROM imds_records
WHERE record = 'exchange' AND version = 'token' AND request_ttl IS NOT NULL
GROUP BY workload ORDER BY hop_limit DESC, workload;
