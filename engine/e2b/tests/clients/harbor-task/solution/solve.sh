#!/bin/bash
id -un >name.txt
