#!/usr/bin/env bash
# This proxy beside HAProxy and nginx: benches/compare/run.sh [OPTION…] [ROW…], --help lists both.
#
# Installs HAProxy and nginx (Debian packages) if they are missing, builds the proxy and the load
# generator in release, and pins them to different processors: PROXY_CORE (1) and LOAD_CORE (0).
# PRIORITY=-18 shields the run from other work on the machine.
set -euo pipefail
cd "$(dirname "$0")/../.."

PATH="$PATH:$HOME/.cargo/bin:/usr/sbin:/sbin"
PROXY_CORE=${PROXY_CORE:-1}
LOAD_CORE=${LOAD_CORE:-0}
say() { printf '%s\n' "compare: $*" >&2; }

missing=()
command -v haproxy >/dev/null || missing+=(haproxy)
command -v nginx >/dev/null || missing+=(nginx-light)
[ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || missing+=(libnginx-mod-stream)
command -v taskset >/dev/null || missing+=(util-linux)
if [ ${#missing[@]} -gt 0 ]; then
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    say "installing: ${missing[*]}"
    apt_get=(env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300)
    "${as_root[@]}" "${apt_get[@]}" update
    "${as_root[@]}" "${apt_get[@]}" install --no-install-recommends "${missing[@]}"
    say "note: Debian's packages may have started services of their own; the comparison does not use them."
fi

if [ "$(nproc)" -lt 2 ]; then
    say 'two processors are needed: one for the proxy, one for the load'
    exit 1
fi

${CARGO:-cargo} build ${CARGO_FLAGS:-} --release
${CARGO:-cargo} bench ${CARGO_FLAGS:-} --bench compare --no-run
printf '%s\n' "$(nproc) processors, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), Linux $(uname -r)" \
    "$(haproxy -v | head -1)" "$(nginx -v 2>&1)" "mqtt-proxy $(git rev-parse --short HEAD 2>/dev/null || true)"
command=("${CARGO:-cargo}" bench ${CARGO_FLAGS:-} --bench compare --
    --run --proxy-core "$PROXY_CORE" --load-core "$LOAD_CORE" "$@")
if [ -n "${PRIORITY:-}" ]; then
    # A session of its own with this priority (-20 is the highest, needs root): on a machine that
    # does other work, niceness alone has no effect across sessions.
    exec setsid -w sh -c 'echo "$0" >/proc/self/autogroup && exec "$@"' "$PRIORITY" "${command[@]}"
fi
exec "${command[@]}"
