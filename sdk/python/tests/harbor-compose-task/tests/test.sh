#!/bin/bash
mkdir -p /logs/verifier/more
echo "$FROM_THE_TASK $FROM_THE_IMAGE $PWD $(id -u)" >/logs/verifier/more/seen
if [ "$(cat /app/word)" = periwinkle ]; then echo 1 >/logs/verifier/reward.txt; else echo 0 >/logs/verifier/reward.txt; fi
