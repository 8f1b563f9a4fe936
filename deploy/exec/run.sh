#!/bin/sh
# Runs a command beside a stand-in for IMDS in a CI job. Settings come from the environment:
#   EXEC_COMMAND   the command, for `sh -c`
#   EXEC_AGAINST   options of --against; empty with EXEC_MATRIX=true: the defaults
#   EXEC_MATRIX    true: try all usual settings
#   EXEC_ASSERT    assertions between commas, or empty
#   EXEC_FAIL_ON   a severity, or empty
#   EXEC_REPORT    file for the report; empty: standard output
# The exit status is that of `imds-observer exec`.
set -eu

if [ "${EXEC_MATRIX:-false}" = true ]; then
    set -- --matrix
    if [ -n "${EXEC_AGAINST:-}" ]; then
        set -- "$@" --against "$EXEC_AGAINST"
    fi
else
    set -- --against "${EXEC_AGAINST:-tokens=required,hop-limit=1,hops=1}"
fi
if [ -n "${EXEC_ASSERT:-}" ]; then
    set -- "$@" --assert "$EXEC_ASSERT"
fi
if [ -n "${EXEC_FAIL_ON:-}" ]; then
    set -- "$@" --fail-on "$EXEC_FAIL_ON"
fi
if [ -n "${EXEC_REPORT:-}" ]; then
    set -- "$@" --write "$EXEC_REPORT"
fi
set -- "${EXEC_PROGRAM:-imds-observer}" exec "$@" -- sh -c "${EXEC_COMMAND:?the command is missing}"
# As root, the report names processes.
if [ "$(id -u)" -ne 0 ] && command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    exec sudo -E env "PATH=$PATH" "$@"
fi
exec "$@"
