-- Requests without a token, by workload. All of these workloads must change before tokens are required.
SELECT coalesce(workload, 'unknown') AS workload, count(*) AS requests, count(DISTINCT host) AS hosts, strftime(max(time), '%Y-%m-%dT%H:%M:%S') AS last_seen
FROM imds_records
WHERE record = 'exchange' AND version = 'v1'
GROUP BY ALL ORDER BY requests DESC, workload;
