#!/bin/bash
mkdir -p /logs/verifier/more/none
id -un >/logs/verifier/more/user
ln /logs/verifier/more/user /logs/verifier/more/hard
ln -s user /logs/verifier/more/soft
ln -s /etc/passwd /logs/verifier/more/away
mkfifo /logs/verifier/more/pipe
if [ "$(cat /app/out.txt)" = hello ]; then echo 1 >/logs/verifier/reward.txt; else echo 0 >/logs/verifier/reward.txt; fi
