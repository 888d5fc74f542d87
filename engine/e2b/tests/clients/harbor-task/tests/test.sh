#!/bin/bash
mkdir -p /logs/verifier/more
ls -la /root >/logs/verifier/more/listing
if [ "$(cat /root/name.txt)" = root ]; then echo 1 >/logs/verifier/reward.txt; else echo 0 >/logs/verifier/reward.txt; fi
