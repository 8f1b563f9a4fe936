-- Requests without a token, by workload. All of these workloads must change before tokens are required.
SELECT if(workload = '', 'unknown', workload) AS workload, count() AS requests, uniqExact(host) AS hosts, formatDateTime(max(time), '%Y-%m-%dT%H:%i:%S') AS last_seen
FROM imds_records
WHERE record = 'exchange' AND version = 'v1'
GROUP BY workload ORDER BY requests DESC, workload;
