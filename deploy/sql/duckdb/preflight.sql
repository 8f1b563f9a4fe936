-- Workloads that would fail with --http-tokens required, counted as in `preflight`. Check lost_records.sql for coverage gaps.
SELECT coalesce(workload, 'unknown') AS workload, count(*) AS requests, strftime(max(time), '%Y-%m-%dT%H:%M:%S') AS last_seen
FROM imds_records
WHERE record = 'exchange' AND version = 'v1' AND dialect IN ('aws', 'unknown') AND outcome = 'answered' AND (status < 400 OR status = 404)
GROUP BY ALL ORDER BY requests DESC, workload;
