-- Who would break with --http-tokens required, as `preflight` counts; ask lost_records.sql whether the answer can be trusted.
SELECT coalesce(workload, 'unknown') AS workload, count(*) AS requests, strftime(max(time), '%Y-%m-%dT%H:%M:%S') AS last_seen
FROM imds_records
WHERE record = 'exchange' AND version = 'v1' AND dialect IN ('aws', 'unknown') AND outcome = 'answered' AND (status < 400 OR status = 404)
GROUP BY ALL ORDER BY requests DESC, workload;
