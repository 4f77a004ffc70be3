#!/usr/bin/env bash
# All tests: what `make test` runs. Arguments are passed to the test runner.
set -euo pipefail
cd "$(dirname "$0")/.."

PATH="$PATH:$HOME/.cargo/bin:/usr/sbin:/sbin"
read -r -a cargo <<<"${CARGO:-cargo}"
read -r -a flags <<<"${CARGO_FLAGS---locked}"

scripts/install-deps.sh build test

# Some tests hold thousands of connections; a login shell's soft limit is often 1,024.
hard=$(ulimit -Hn)
if [ "$hard" = unlimited ] || [ "$hard" -gt 65536 ]; then
    hard=65536
fi
ulimit -Sn "$hard"

if "${cargo[@]}" nextest --version >/dev/null 2>&1; then
    "${cargo[@]}" nextest run "${flags[@]}" --no-fail-fast "$@"
    # nextest does not run documentation tests.
    "${cargo[@]}" test "${flags[@]}" --doc
else
    "${cargo[@]}" test "${flags[@]}" --no-fail-fast "$@"
fi
