-- One row per record of `imds-observer stream`. Frequently used fields are columns; `line` holds the complete record.
-- Load with:  INSERT INTO imds_records (line) SELECT line FROM file('*.ndjson*', LineAsString, 'line String')
--        or:  clickhouse-client --query 'INSERT INTO imds_records (line) FORMAT LineAsString' < trace.ndjson

-- The owner of a pod: without the suffix that a ReplicaSet, Deployment, Job or DaemonSet adds to its name.
CREATE FUNCTION IF NOT EXISTS imds_pod_owner AS (name) -> multiIf(
  match(name, '^.+-[bcdfghjklmnpqrstvwxz2456789]{5}$'),
    if(match(name, '^.+-[bcdfghjklmnpqrstvwxz2456789]{6,10}-.{5}$') AND match(extract(name, '-([^-]+)-[^-]{5}$'), '[0-9]')
         OR match(name, '^.+-[0-9]{8,}-.{5}$'),
       replaceRegexpOne(name, '-[^-]+-[^-]{5}$', ''),
       replaceRegexpOne(name, '-[^-]{5}$', '')),
  match(name, '^.+-[0-9]{1,3}$'), replaceRegexpOne(name, '-[0-9]{1,3}$', ''),
  name);

CREATE FUNCTION IF NOT EXISTS imds_base_name AS (path) -> extract(path, '([^/]*)/*$');

-- What a program is called: an interpreter with the script that it runs.
CREATE FUNCTION IF NOT EXISTS imds_program AS (exe, cmdline) -> concat(
  imds_base_name(exe),
  if(match(imds_base_name(exe), '^(python|pypy|ruby|node|nodejs|perl|php|bash|sh|dash|zsh|ash|busybox)[0-9.]*$')
       AND arrayExists(argument -> NOT startsWith(argument, '-'), arraySlice(cmdline, 2)),
     concat(' ', imds_base_name(arrayFirst(argument -> NOT startsWith(argument, '-'), arraySlice(cmdline, 2)))), ''));

CREATE TABLE IF NOT EXISTS imds_records (
  line String CODEC(ZSTD(3)),
  record LowCardinality(String) MATERIALIZED JSONExtractString(line, 'record'),
  time DateTime64(9, 'UTC') MATERIALIZED parseDateTime64BestEffortOrZero(JSONExtractString(line, 'time'), 9, 'UTC'),
  host LowCardinality(String) MATERIALIZED JSONExtractString(line, 'host'),
  -- Unit of deployment: the owner of the pod, the container, the systemd unit or the program. Empty: unknown.
  workload LowCardinality(String) MATERIALIZED multiIf(
    JSONExtractString(line, 'container', 'pod', 'name') != '',
      concat(if(JSONExtractString(line, 'container', 'pod', 'namespace') = '', '',
                concat(JSONExtractString(line, 'container', 'pod', 'namespace'), '/')),
             imds_pod_owner(JSONExtractString(line, 'container', 'pod', 'name'))),
    JSONExtractString(line, 'container', 'pod', 'uid') != '', concat('pod ', JSONExtractString(line, 'container', 'pod', 'uid')),
    JSONExtractString(line, 'container', 'name') != '', JSONExtractString(line, 'container', 'name'),
    JSONExtractString(line, 'container', 'id') != '', concat('container ', left(JSONExtractString(line, 'container', 'id'), 12)),
    arrayExists(part -> endsWith(part, '.service') AND NOT startsWith(part, 'user@'), splitByChar('/', JSONExtractString(line, 'process', 'cgroup'))),
      arrayLast(part -> endsWith(part, '.service') AND NOT startsWith(part, 'user@'), splitByChar('/', JSONExtractString(line, 'process', 'cgroup'))),
    imds_program(
      if(JSONExtractString(line, 'process', 'exe') != '', JSONExtractString(line, 'process', 'exe'), JSONExtractString(line, 'process', 'comm')),
      JSONExtract(line, 'process', 'cmdline', 'Array(String)'))),
  version LowCardinality(String) MATERIALIZED JSONExtractString(line, 'request', 'imds_version'),
  dialect LowCardinality(String) MATERIALIZED JSONExtractString(line, 'request', 'dialect'),
  endpoint LowCardinality(String) MATERIALIZED JSONExtractString(line, 'request', 'endpoint'),
  path String MATERIALIZED JSONExtractString(line, 'request', 'path'),
  request_ttl Nullable(UInt8) MATERIALIZED JSONExtract(line, 'request', 'ttl', 'Nullable(UInt8)'),
  status Nullable(UInt16) MATERIALIZED JSONExtract(line, 'response', 'status', 'Nullable(UInt16)'),
  response_ttl Nullable(UInt8) MATERIALIZED JSONExtract(line, 'response', 'ttl', 'Nullable(UInt8)'),
  outcome LowCardinality(String) MATERIALIZED JSONExtractString(line, 'outcome'),
  latency_ns Nullable(UInt64) MATERIALIZED JSONExtract(line, 'latency_ns', 'Nullable(UInt64)'),
  waited_ns Nullable(UInt64) MATERIALIZED JSONExtract(line, 'waited_ns', 'Nullable(UInt64)')
) ENGINE = MergeTree PARTITION BY toYYYYMM(time) ORDER BY (record, host, time);
