#!/bin/bash
# Somebody waits for something, without a pause.
end=$((SECONDS + 5))
while [ $SECONDS -lt $end ]; do
    curl -s -o /dev/null http://169.254.169.254/latest/meta-data/instance-id
done
