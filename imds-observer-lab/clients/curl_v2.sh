#!/bin/sh
# As every how-to says.
TOKEN=$(curl -sf -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 21600' http://169.254.169.254/latest/api/token)
for path in instance-id placement/availability-zone; do
    curl -sf -m 2 -o /dev/null -H "X-aws-ec2-metadata-token: $TOKEN" "http://169.254.169.254/latest/meta-data/$path"
done
