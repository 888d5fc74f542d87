#!/bin/bash
# The working directory is that of the Dockerfile.
echo hello >out.txt
