-- One row per record of `imds-observer stream`. Frequently used fields are columns; `line` holds the complete record.
-- Set the files first: SET VARIABLE traces = '/var/log/imds/*.ndjson*';  (lists and .gz/.zst work too)

-- The owner of a pod: without the suffix that a ReplicaSet, Deployment, Job or DaemonSet adds to its name.
CREATE OR REPLACE MACRO pod_owner(name) AS
  CASE
    WHEN regexp_matches(name, '^.+-[bcdfghjklmnpqrstvwxz2456789]{5}$') THEN
      CASE
        WHEN regexp_matches(name, '^.+-[bcdfghjklmnpqrstvwxz2456789]{6,10}-.{5}$')
         AND regexp_matches(regexp_extract(name, '-([^-]+)-[^-]{5}$', 1), '[0-9]')
          OR regexp_matches(name, '^.+-[0-9]{8,}-.{5}$')
        THEN regexp_replace(name, '-[^-]+-[^-]{5}$', '')
        ELSE regexp_replace(name, '-[^-]{5}$', '')
      END
    WHEN regexp_matches(name, '^.+-[0-9]{1,3}$') THEN regexp_replace(name, '-[0-9]{1,3}$', '')
    ELSE name
  END;

CREATE OR REPLACE MACRO base_name(path) AS regexp_extract(path, '([^/]*)/*$', 1);

-- What a program is called: an interpreter with the script that it runs.
CREATE OR REPLACE MACRO program(exe, cmdline) AS
  base_name(exe) || CASE
    WHEN regexp_matches(base_name(exe), '^(python|pypy|ruby|node|nodejs|perl|php|bash|sh|dash|zsh|ash|busybox)[0-9.]*$')
    THEN coalesce(' ' || base_name(list_filter(cmdline[2:], lambda argument: NOT starts_with(argument, '-'))[1]), '')
    ELSE ''
  END;

-- Unit of deployment: the owner of the pod, the container, the systemd unit or the program. NULL: unknown.
CREATE OR REPLACE MACRO workload(line) AS
  CASE
    WHEN line->>'$.container.pod.name' IS NOT NULL THEN
      coalesce((line->>'$.container.pod.namespace') || '/', '') || pod_owner(line->>'$.container.pod.name')
    WHEN line->>'$.container.pod.uid' IS NOT NULL THEN 'pod ' || (line->>'$.container.pod.uid')
    WHEN line->>'$.container.id' IS NOT NULL THEN
      coalesce(line->>'$.container.name', 'container ' || left(line->>'$.container.id', 12))
    WHEN regexp_matches(line->>'$.process.cgroup', '[^/]+\.service(/|$)')
     AND NOT starts_with(regexp_extract(line->>'$.process.cgroup', '.*?([^/]+\.service)(/[^/]*)*$', 1), 'user@') THEN
      list_last(list_filter(string_split(line->>'$.process.cgroup', '/'), lambda part: ends_with(part, '.service') AND NOT starts_with(part, 'user@')))
    ELSE program(coalesce(line->>'$.process.exe', line->>'$.process.comm'), CAST(line->'$.process.cmdline' AS VARCHAR[]))
  END;

CREATE TABLE IF NOT EXISTS imds_records (
  record VARCHAR, time TIMESTAMP_NS, host VARCHAR, workload VARCHAR,
  version VARCHAR, dialect VARCHAR, endpoint VARCHAR, path VARCHAR, request_ttl UTINYINT,
  status USMALLINT, response_ttl UTINYINT, outcome VARCHAR, latency_ns UBIGINT, waited_ns UBIGINT,
  line JSON
);

INSERT INTO imds_records
SELECT
  line->>'$.record', CAST(replace(line->>'$.time', 'Z', '') AS TIMESTAMP_NS), line->>'$.host', workload(line),
  line->>'$.request.imds_version', line->>'$.request.dialect', line->>'$.request.endpoint', line->>'$.request.path', CAST(line->>'$.request.ttl' AS UTINYINT),
  CAST(line->>'$.response.status' AS USMALLINT), CAST(line->>'$.response.ttl' AS UTINYINT), line->>'$.outcome',
  CAST(line->>'$.latency_ns' AS UBIGINT), CAST(line->>'$.waited_ns' AS UBIGINT),
  line
FROM (SELECT json AS line FROM read_ndjson_objects(getvariable('traces'), ignore_errors = true))
WHERE line->>'$.record' IS NOT NULL;
