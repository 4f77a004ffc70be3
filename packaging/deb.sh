#!/usr/bin/env bash
# Builds the Debian package and prints where it is. PROFILE=dev packages an unoptimised build, to
# try the packaging only. cargo-deb is installed first if it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

PATH="$PATH:$HOME/.cargo/bin"
read -r -a cargo <<<"${CARGO:-cargo}"
read -r -a flags <<<"${CARGO_FLAGS---locked}"
profile=${PROFILE:-release}
target=${CARGO_TARGET_DIR:-target}

scripts/install-deps.sh build packaging
"${cargo[@]}" deb --version >/dev/null 2>&1 || "${cargo[@]}" install --locked cargo-deb

"${cargo[@]}" build "${flags[@]}" --profile "$profile" --bin mqtt-proxy
case $profile in
    dev) binary=$target/debug/mqtt-proxy ;;
    *) binary=$target/$profile/mqtt-proxy ;;
esac

# Generated from the binary, so that it is the one in the package that they describe.
generated=target/packaging
rm -rf "$generated"
mkdir -p "$generated"/{man,completions,schema}
"$binary" man >"$generated/man/mqtt-proxy.1"
for command in run check explain status upgrade schema completions man; do
    "$binary" man "$command" >"$generated/man/mqtt-proxy-$command.1"
done
"$binary" completions bash >"$generated/completions/mqtt-proxy.bash"
"$binary" completions zsh >"$generated/completions/_mqtt-proxy"
"$binary" completions fish >"$generated/completions/mqtt-proxy.fish"
for file in config apisix; do
    "$binary" schema "$file" >"$generated/schema/$file.json"
done

"${cargo[@]}" deb --locked --no-build --profile "$profile" --output "$target/debian/"
