-- Workloads that would fail with --http-tokens required, counted as in `preflight`. Check lost_records.sql for coverage gaps.
SELECT if(workload = '', 'unknown', workload) AS workload, count() AS requests, formatDateTime(max(time), '%Y-%m-%dT%H:%i:%S') AS last_seen
FROM imds_records
WHERE record = 'exchange' AND version = 'v1' AND dialect IN ('aws', 'unknown') AND outcome = 'answered' AND (status < 400 OR status = 404)
GROUP BY workload ORDER BY requests DESC, workload;
