-- Busiest second of each interface, to compare with the quota of 1024 packets.
SELECT host, interface->>'$.name' AS interface, max(CAST(interface->>'$.peak_packets_per_s' AS UBIGINT)) AS peak_packets_per_s
FROM (SELECT host, unnest(CAST(line->'$.interfaces' AS JSON[])) AS interface FROM imds_records WHERE record = 'summary' AND line->>'$.total' = 'false')
GROUP BY ALL ORDER BY peak_packets_per_s DESC, host, interface;
