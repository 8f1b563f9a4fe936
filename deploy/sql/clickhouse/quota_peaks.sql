-- Busiest second of each interface, to compare with the quota of 1024 packets.
SELECT host, JSONExtractString(each, 'name') AS interface, max(JSONExtractUInt(each, 'peak_packets_per_s')) AS peak_packets_per_s
FROM imds_records ARRAY JOIN JSONExtractArrayRaw(line, 'interfaces') AS each
WHERE record = 'summary' AND NOT JSONExtractBool(line, 'total')
GROUP BY host, interface ORDER BY peak_packets_per_s DESC, host, interface;
