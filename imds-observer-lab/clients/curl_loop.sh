#!/bin/bash
# Somebody waits for something, all too eagerly. The pause keeps a fast machine below half of the packet quota: how much
# of it a loop without one takes depends on the machine, and is another finding.
end=$((SECONDS + 5))
while [ $SECONDS -lt $end ]; do
    curl -s -o /dev/null http://169.254.169.254/latest/meta-data/instance-id
    sleep 0.03
done
