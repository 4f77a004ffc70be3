#!/usr/bin/env bash
# Installs the Debian package into a scratch root, upgrades, removes and purges it there, and looks
# at what is there each time. The machine itself is not touched. Needs root, for the owners of the
# files. DEB names a package that is built already; otherwise packaging/deb.sh builds it.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'test-packaging: %s\n' "$*" >&2; exit 1; }
say() { printf 'test-packaging: %s\n' "$*"; }
# is WHAT WANTED FOUND
is() { [ "$2" = "$3" ] || fail "$1: expected '$2', found '$3'"; }

[ "$(id -u)" -eq 0 ] || fail 'needs root; it installs below a temporary folder only'
scripts/install-deps.sh packaging
deb=${DEB:-}
[ -n "$deb" ] || deb=$(packaging/deb.sh | tail -n 1)
[ -f "$deb" ] || fail "no package $deb"
say "package $deb"

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
machine() { cat /etc/passwd /etc/group /var/lib/dpkg/status | cksum; ls -d /etc/mqtt-proxy /usr/bin/mqtt-proxy 2>&1 || true; }
before=$(machine)

mkdir -p "$root"/var/lib/dpkg/{info,updates} "$root/etc"
touch "$root/var/lib/dpkg/status"
# Its dependencies are the machine's; its scripts run outside and heed DPKG_ROOT.
in_root() {
    dpkg --root="$root" --log=/dev/null --force-depends --force-script-chrootless --force-confold \
        "$@" >"$root/dpkg.log" 2>&1 || { cat "$root/dpkg.log" >&2; fail "dpkg $*"; }
}
state() { dpkg-query --admindir="$root/var/lib/dpkg" -W -f '${Status}' mqtt-proxy 2>/dev/null || true; }

in_root --install "$deb"
is state 'install ok installed' "$(state)"
gid=$(sed -n 's/^mqtt-proxy:[^:]*:\([0-9]*\):.*/\1/p' "$root/etc/group")
[ -n "$gid" ] || fail 'no group mqtt-proxy'
grep -q '^mqtt-proxy:.*:/usr/sbin/nologin$' "$root/etc/passwd" || fail 'no user mqtt-proxy without a shell'
owned() { is "$1" "$2" "$(stat -c '%a %u:%g' "$root$1")"; }
owned /etc/mqtt-proxy "750 0:$gid"
owned /etc/mqtt-proxy/config.yaml "640 0:$gid"
owned /etc/mqtt-proxy/apisix.yaml "640 0:$gid"
owned /usr/bin/mqtt-proxy '755 0:0'
is conffiles '/etc/default/mqtt-proxy /etc/mqtt-proxy/apisix.yaml /etc/mqtt-proxy/config.yaml' \
    "$(sort "$root/var/lib/dpkg/info/mqtt-proxy.conffiles" | xargs)"
dpkg-deb -f "$deb" Depends | grep -q 'libssl3' || fail 'the OpenSSL that it links is no dependency'

version=$("$root/usr/bin/mqtt-proxy" --version)
is version "mqtt-proxy $(dpkg-deb -f "$deb" Version | cut -d- -f1)" "$version"
"$root/usr/bin/mqtt-proxy" check --strict --config "$root/etc/mqtt-proxy/config.yaml" ||
    fail 'the configuration of the package is not clean'
for schema in config apisix; do
    python3 -m json.tool "$root/usr/share/mqtt-proxy/schema/$schema.json" >/dev/null || fail "schema $schema"
done

share=$root/usr/share/mqtt-proxy
python3 -m json.tool "$share/grafana/mqtt-proxy.json" >/dev/null || fail 'the dashboard is no JSON'
[ -s "$share/prometheus/mqtt-proxy.rules.yml" ] || fail 'no alert rules'
promtool=${PROMTOOL:-promtool}
if command -v "$promtool" >/dev/null; then
    "$promtool" check rules "$share/prometheus/mqtt-proxy.rules.yml" >/dev/null || fail 'promtool check rules'
    (cd "$share/prometheus" && "$promtool" test rules mqtt-proxy.test.yml >/dev/null) || fail 'promtool test rules'
else
    say 'skipped: no promtool (Debian package prometheus) to check the alert rules'
fi

# Under the units of this machine, but with the binary in the scratch root.
sed "s,/usr/bin/mqtt-proxy,$root&," "$root/usr/lib/systemd/system/mqtt-proxy.service" >"$root/mqtt-proxy.service"
warnings=$(systemd-analyze verify --man=no "$root/mqtt-proxy.service" 2>&1) || fail "systemd-analyze verify: $warnings"
[ -z "$warnings" ] || fail "systemd-analyze verify: $warnings"

pages=0
for page in "$root"/usr/share/man/man1/mqtt-proxy*.1.gz; do
    warnings=$(gzip -dc "$page" | groff -man -Tutf8 -ww -z 2>&1)
    [ -z "$warnings" ] || fail "$(basename "$page"): $warnings"
    pages=$((pages + 1))
done
commands=$("$root/usr/bin/mqtt-proxy" man | grep -c '^mqtt\\-proxy\\-[a-z]*(1)$')
is 'manual pages' "$((commands + 1))" "$pages"

completions=$root/usr/share/bash-completion/completions/mqtt-proxy
suggested=$(bash -c '. "$1"; COMP_WORDS=(mqtt-proxy che); COMP_CWORD=1
    _mqtt__proxy mqtt-proxy che mqtt-proxy; echo "${COMPREPLY[@]}"' bash "$completions")
is 'completion of che' check "$suggested"
for file in zsh/vendor-completions/_mqtt-proxy fish/vendor_completions.d/mqtt-proxy.fish; do
    [ -s "$root/usr/share/$file" ] || fail "no $file"
done
say 'installed: user, owners, configuration, unit, manual pages, completions'

# An upgrade keeps an administrator's edit and owner.
echo '# mine' >>"$root/etc/mqtt-proxy/config.yaml"
chmod 600 "$root/etc/mqtt-proxy/config.yaml"
in_root --install "$deb"
grep -q '^# mine$' "$root/etc/mqtt-proxy/config.yaml" || fail 'an upgrade overwrites config.yaml'
owned /etc/mqtt-proxy/config.yaml "600 0:$gid"
say 'upgraded: edits and owners are kept'

in_root --remove mqtt-proxy
is state 'deinstall ok config-files' "$(state)"
[ ! -e "$root/usr/bin/mqtt-proxy" ] || fail 'the binary is left'
[ -e "$root/etc/mqtt-proxy/config.yaml" ] || fail 'removing deletes the configuration'
in_root --purge mqtt-proxy
is state '' "$(state)"
[ ! -e "$root/etc/mqtt-proxy" ] || fail 'purging leaves the configuration'
say 'removed and purged'

is 'this machine' "$before" "$(machine)"
say 'all is well'
