#!/usr/bin/env bash
# Writes the JSON Schemas of both configuration files to conf/schema/, where the first line of
# the example files tells an editor to look for them. MQTT_PROXY names a program that is built
# already.
set -euo pipefail
cd "$(dirname "$0")/.."

read -r -a cargo <<<"${CARGO:-cargo}"
read -r -a flags <<<"${CARGO_FLAGS---locked}"

proxy=${MQTT_PROXY:-}
if [ -z "$proxy" ]; then
    "${cargo[@]}" build "${flags[@]}" --release --bin mqtt-proxy
    proxy=${CARGO_TARGET_DIR:-target}/release/mqtt-proxy
fi
mkdir -p conf/schema
for name in config apisix; do
    # Through a temporary file: a failure leaves the old schema whole.
    "$proxy" schema "$name" >"conf/schema/$name.json.new"
    mv "conf/schema/$name.json.new" "conf/schema/$name.json"
    echo "conf/schema/$name.json"
done
