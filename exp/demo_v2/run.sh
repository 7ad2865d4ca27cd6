#!/usr/bin/env bash
EXPERIMENT=demo_v2 exec bash "$(dirname "$0")/../demo/run.sh" "$@"
