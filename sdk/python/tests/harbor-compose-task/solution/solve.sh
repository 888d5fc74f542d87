#!/bin/bash
wget -q -O word http://pages:8000/word
