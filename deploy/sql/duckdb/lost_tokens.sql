-- Token responses lost on the way to their caller, and the seconds lost, by node.
SELECT host, count(*) AS lost, round(sum(waited_ns) / 1e9, 3) AS seconds_lost
FROM imds_records
WHERE record = 'exchange' AND version = 'token' AND outcome = 'lost'
GROUP BY host ORDER BY lost DESC, host;
