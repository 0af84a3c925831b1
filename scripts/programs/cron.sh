#!/bin/sh
# A cron loop: a line a second, from Debian's cron where it may run, from a loop beside it.
trap 'exit 0' TERM
n=0
while :; do
    n=$((n + 1))
    echo "tick $n"
    sleep 1 &
    wait $!
done
