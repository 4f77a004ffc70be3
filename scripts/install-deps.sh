#!/usr/bin/env bash
# Installs the Debian packages that are missing, and nothing else.
#
#   scripts/install-deps.sh [build] [test] [demo] [packaging]      default: the first three
#
# Does nothing (and needs no rights) when everything is there. Needs root or sudo otherwise.
set -euo pipefail

PATH="$PATH:$HOME/.cargo/bin:/usr/sbin:/sbin"

say() { printf '%s\n' "install-deps: $*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

missing=()
need() { # PACKAGE COMMAND...: the package is missing unless the command succeeds
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

need_build() {
    need gcc have gcc
    need libc6-dev test -e /usr/include/stdlib.h
    need make have make
    need perl have perl
    # zlib-ng, below Pingora, is built by cmake.
    need cmake have cmake
    need pkg-config have pkg-config
    # The system's OpenSSL is linked, see .cargo/config.toml.
    need libssl-dev test -e /usr/include/openssl/ssl.h
}
need_mosquitto() {
    need mosquitto have mosquitto
    need mosquitto-clients have mosquitto_rr
}
need_test() {
    need_mosquitto
    # The system's Python, whatever other Python comes first on PATH.
    # systemd-analyze and systemd-socket-activate; nothing of systemd needs to run.
    need systemd have systemd-socket-activate
    need python3-paho-mqtt /usr/bin/python3 -c 'import paho.mqtt.client'
}

need_packaging() {
    need dpkg-dev have dpkg-shlibdeps
    need systemd have systemd-analyze
    # Checks the manual pages; Debian's minimal groff-base is enough.
    need groff-base have groff
    need python3 have python3
}

[ $# -gt 0 ] || set -- build test demo
for group in "$@"; do
    case $group in
        build) need_build ;;
        test) need_test ;;
        demo) need_mosquitto ;;
        packaging) need_packaging ;;
        *)
            say "unknown group '$group' (known: build, test, demo, packaging)"
            exit 2
            ;;
    esac
done

if ! have cargo; then
    say 'cargo was not found. Install Rust (rustup, stable toolchain) and try again.'
    exit 1
fi

if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

if ! have apt-get; then
    say "missing: ${missing[*]}"
    say 'this system has no apt-get: install these (Debian package names) by hand and try again.'
    exit 1
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! have sudo; then
        say "missing: ${missing[*]}"
        say "neither root nor sudo here. Ask an administrator to run: apt-get install ${missing[*]}"
        exit 1
    fi
    as_root=(sudo)
fi

say "installing: ${missing[*]}"
# --no-install-recommends: nothing that was not asked for. The lock timeout waits for
# unattended-upgrades on a freshly started machine instead of failing.
apt_get=(env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300)
"${as_root[@]}" "${apt_get[@]}" update
"${as_root[@]}" "${apt_get[@]}" install --no-install-recommends "${missing[@]}"

case " ${missing[*]} " in
    *' mosquitto '*)
        say "note: Debian's mosquitto package may have started its own broker on port 1883."
        say 'Tests and demo do not use it and do not stop it; they start brokers of their own on other ports.'
        ;;
esac
