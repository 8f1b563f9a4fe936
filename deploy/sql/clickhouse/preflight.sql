-- Who would break with --http-tokens required, as `preflight` counts; ask lost_records.sql whether the answer can be trusted.
SELECT if(workload = '', 'unknown', workload) AS workload, count() AS requests, formatDateTime(max(time), '%Y-%m-%dT%H:%i:%S') AS last_seen
FROM imds_records
WHERE record = 'exchange' AND version = 'v1' AND dialect IN ('aws', 'unknown') AND outcome = 'answered' AND (status < 400 OR status = 404)
GROUP BY workload ORDER BY requests DESC, workload;
