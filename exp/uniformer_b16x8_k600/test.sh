#!/usr/bin/env bash
exec bash "$(dirname "$0")/../test.sh" "$(basename "$(cd "$(dirname "$0")" && pwd)")" "$@"
