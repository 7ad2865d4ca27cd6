#!/usr/bin/env bash
exec bash "$(dirname "$0")/../demo.sh" "$(basename "$(cd "$(dirname "$0")" && pwd)")" "$@"
