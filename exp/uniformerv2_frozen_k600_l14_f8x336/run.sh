#!/usr/bin/env bash
exec bash "$(dirname "$0")/../run.sh" "$(basename "$(cd "$(dirname "$0")" && pwd)")" "$@"
