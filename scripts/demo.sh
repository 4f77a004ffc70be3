#!/usr/bin/env bash
# The demonstration: two real mosquitto brokers behind the proxy on conf/config.yaml and
# conf/apisix.yaml, all on the loopback address.
#
#   make demo                 shows it, then leaves everything running until Ctrl-C
#   DEMO_ONCE=1 make demo     shows it, stops everything, exits 0 (1 if anything was wrong)
#
# MQTT_PORT, METRICS_PORT, BROKER_A_PORT and BROKER_B_PORT choose ports; otherwise those of the
# files are used where they are free, and other free ones where they are not. MQTT_PROXY names a
# program that is built already.
set -euo pipefail
cd "$(dirname "$0")/.."

PATH="$PATH:$HOME/.cargo/bin:/usr/sbin:/sbin"
readonly CONFIG=conf/config.yaml
readonly ONCE=${DEMO_ONCE:-}
# Seconds that a condition may take before the demonstration gives up.
readonly PATIENCE=20
# Client id and the MQTT version that it speaks, as mosquitto's clients call it.
declare -rA VERSIONS=([mqttv31]=3.1 [mqttv311]=3.1.1 [mqttv5]=5)
readonly CLIENTS=(
    'dev-1 mqttv311' 'dev-2 mqttv311' 'dev-3 mqttv5' 'dev-4 mqttv5'
    'dev-5 mqttv31' 'dev-6 mqttv31' 'meter-42 mqttv5' 'valve-7 mqttv311'
)

say() { printf '%s\n' "$*"; }
title() { printf '\n== %s\n' "$*"; }
fail() {
    printf 'demo: %s\n' "$*" >&2
    exit 1
}

# --- what this script started, and ending it -----------------------------------------------

work=
proxy_pid=
broker_a_pid=
broker_b_pid=
tail_pid=

alive() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }

# end PID SIGNAL: ends one child of this script; with force after five seconds.
end() {
    local pid=$1 signal=$2 deadline=$((SECONDS + 5))
    alive "$pid" || return 0
    kill -s "$signal" "$pid" 2>/dev/null || return 0
    while alive "$pid"; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            kill -s KILL "$pid" 2>/dev/null || true
            break
        fi
        sleep 0.05
    done
    wait "$pid" 2>/dev/null || true
}

cleanup() {
    local status=$?
    trap - EXIT
    trap '' INT TERM HUP
    # INT: the proxy exits at once instead of waiting for its connections.
    end "$tail_pid" TERM
    end "$proxy_pid" INT
    end "$broker_a_pid" TERM
    end "$broker_b_pid" TERM
    if [ "$status" -ne 0 ] && [ -n "$work" ] && [ -s "$work/proxy.log" ]; then
        say '--- last lines of the proxy'"'"'s log' >&2
        tail -n 20 "$work/proxy.log" >&2
    fi
    [ -z "$work" ] || rm -rf "$work"
    exit "$status"
}
interrupted() {
    say ''
    say 'Stopping.'
    exit 0
}
trap cleanup EXIT
trap interrupted INT TERM HUP

# wait_for WHAT COMMAND...: until the command succeeds, or fail.
wait_for() {
    local what=$1 deadline=$((SECONDS + PATIENCE))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || fail "gave up after $PATIENCE seconds: $what"
        sleep 0.05
    done
}

# --- ports ---------------------------------------------------------------------------------

taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# choose_port NAME DEFAULT: sets the variable NAME, unless the caller has set it, to the
# default or to a free port near 20000.
chosen=' '
choose_port() {
    local name=$1 default=$2 port
    port=${!name:-$default}
    if [ -n "${!name:-}" ] && taken "$port"; then
        fail "$name=$port: this port is taken; choose another one or leave $name out"
    fi
    while taken "$port" || [[ $chosen == *" $port "* ]]; do
        port=$((20000 + RANDOM % 10000))
    done
    [ "$port" = "${!name:-$default}" ] ||
        say "port $default is taken on this machine: using $port instead ($name)"
    chosen+="$port "
    export "$name=$port"
}

# --- build ---------------------------------------------------------------------------------

scripts/install-deps.sh build demo
if [ -n "${MQTT_PROXY:-}" ]; then
    [ -x "$MQTT_PROXY" ] || fail "MQTT_PROXY=$MQTT_PROXY is not a program"
    proxy=$MQTT_PROXY
else
    read -r -a cargo <<<"${CARGO:-cargo}"
    read -r -a flags <<<"${CARGO_FLAGS---locked}"
    "${cargo[@]}" build "${flags[@]}" --release --bin mqtt-proxy
    proxy=${CARGO_TARGET_DIR:-target}/release/mqtt-proxy
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/mqtt-proxy-demo.XXXXXX")

title 'Two MQTT brokers (mosquitto), which know nothing of each other'
choose_port BROKER_A_PORT 1883
choose_port BROKER_B_PORT 1884
choose_port MQTT_PORT 9100
choose_port METRICS_PORT 9091

# --- brokers -------------------------------------------------------------------------------

# start_broker LETTER PORT PID_VARIABLE
start_broker() {
    local name=$1 port=$2 log="$work/broker-$1.log"
    cat >"$work/broker-$name.conf" <<CONF
listener $port 127.0.0.1
allow_anonymous true
persistence false
log_dest stderr
log_type all
connection_messages true
CONF
    mosquitto -c "$work/broker-$name.conf" >"$log" 2>&1 &
    printf -v "$3" '%s' $!
    broker_up() {
        alive "$1" || fail "broker did not start: $(cat "$2")"
        taken "$3"
    }
    wait_for "broker $name on port $port" broker_up "$!" "$log" "$port"
    say "broker $name: 127.0.0.1:$port (pid $!)"
}
start_broker a "$BROKER_A_PORT" broker_a_pid
start_broker b "$BROKER_B_PORT" broker_b_pid

# --- proxy ---------------------------------------------------------------------------------

start_proxy() {
    : >"$work/proxy.log"
    "$proxy" run --config "$CONFIG" 2>>"$work/proxy.log" &
    proxy_pid=$!
    proxy_up() {
        alive "$proxy_pid" || fail 'the proxy did not start'
        grep -qF "listening on 127.0.0.1:$MQTT_PORT" "$work/proxy.log" && taken "$MQTT_PORT"
    }
    wait_for "the proxy on port $MQTT_PORT" proxy_up
    say "proxy:    127.0.0.1:$MQTT_PORT (pid $proxy_pid), configured by $CONFIG and conf/apisix.yaml"
}

title 'The proxy'
"$proxy" check --config "$CONFIG"
start_proxy

# --- who went where ------------------------------------------------------------------------

# connections LETTER ID: how often broker LETTER's own log says that client ID connected.
connections() { grep -cF " as $2 (" "$work/broker-$1.log" || true; }

# arrived_at ID BEFORE_A BEFORE_B: sets `broker` to where new connections of ID arrived.
broker=
arrived_at() {
    local a b
    a=$(connections a "$1") b=$(connections b "$1")
    if [ "$a" -gt "$2" ] && [ "$b" -gt "$3" ]; then
        fail "client id $1 reached both brokers"
    elif [ "$a" -gt "$2" ]; then
        broker=127.0.0.1:$BROKER_A_PORT
    elif [ "$b" -gt "$3" ]; then
        broker=127.0.0.1:$BROKER_B_PORT
    else
        return 1
    fi
}

# explained ID: the node that `explain` puts first, worked out offline from the files.
explained() {
    "$proxy" explain --config "$CONFIG" --listen "127.0.0.1:$MQTT_PORT" --client-id "$1" |
        sed -n 's/^1\. //p'
}

# One row a client. With `publish`, a client first leaves a retained message behind; in any
# case it then subscribes and must find its message, which only the same broker has.
declare -A home
round() {
    local mode=$1 client id version a b note message
    local all_same=yes
    printf '%-10s %-6s %-23s %-17s %s\n' 'client id' 'MQTT' "broker (broker's log)" explain message
    for client in "${CLIENTS[@]}"; do
        read -r id version <<<"$client"
        a=$(connections a "$id") b=$(connections b "$id")
        if [ "$mode" = publish ]; then
            mosquitto_pub -h 127.0.0.1 -p "$MQTT_PORT" -V "$version" -i "$id" -q 1 -r \
                -t "demo/$id" -m "kept for $id" || fail "client id $id could not publish"
        fi
        message=$(mosquitto_sub -h 127.0.0.1 -p "$MQTT_PORT" -V "$version" -i "$id" -q 1 \
            -t "demo/$id" -C 1 -W "$PATIENCE") || fail "client id $id did not get its message back"
        wait_for "client id $id in a broker's log" arrived_at "$id" "$a" "$b"
        note=
        if [ "$broker" != "$(explained "$id")" ]; then
            all_same=no note=' <- explain differs'
        fi
        if [ "$mode" = publish ]; then
            home[$id]=$broker
        elif [ "${home[$id]}" != "$broker" ]; then
            all_same=no note+=" <- was ${home[$id]} before"
        fi
        printf '%-10s %-6s %-23s %-17s %s%s\n' "$id" "${VERSIONS[$version]}" "$broker" "$(explained "$id")" "$message" "$note"
    done
    [ "$all_same" = yes ] || fail 'not every client id went where it should'
}

title 'Each client publishes through the proxy, connects again and subscribes'
round publish
say 'Every client found its broker again, and `explain` knew it from the files alone.'

title 'The proxy is stopped and started again'
end "$proxy_pid" TERM
start_proxy
round subscribe
say 'Every client id is where it was before: the messages left behind were found.'

if [ -n "$ONCE" ]; then
    title 'Done (DEMO_ONCE)'
    exit 0
fi

# --- leave it running ----------------------------------------------------------------------

# A client of broker B, to show what happens when B goes away.
of_b=dev-1
for id in "${!home[@]}"; do
    if [ "${home[$id]}" = "127.0.0.1:$BROKER_B_PORT" ]; then
        of_b=$id
    fi
done
# The commands below are typed in another shell, which must see the same ports.
environment="export MQTT_PORT=$MQTT_PORT METRICS_PORT=$METRICS_PORT BROKER_A_PORT=$BROKER_A_PORT BROKER_B_PORT=$BROKER_B_PORT"

title 'Everything stays up until Ctrl-C. Things to try in another terminal:'
cat <<NEXT
  cd $PWD
  $environment

  # Publish and subscribe through the proxy. The second command gets what the first one left.
  mosquitto_pub -p $MQTT_PORT -i my-device -t hello -m world -r
  mosquitto_sub -p $MQTT_PORT -i my-device -t hello -C 1

  # Ask where a client id goes, and in which order brokers are tried for it.
  $proxy explain --listen $MQTT_PORT --client-id my-device

  # Edit the routes and watch this terminal: the edit applies within a second and cuts nobody.
  \${EDITOR:-nano} conf/apisix.yaml

  # See every problem in both files, with its line, before it is live.
  $proxy check

  # Kill broker B; its client $of_b is then served by A.
  kill -KILL $broker_b_pid
  mosquitto_pub -p $MQTT_PORT -i $of_b -t hello -m 'still here' -d

  # Metrics; read the routes again now.
  curl -s http://127.0.0.1:$METRICS_PORT/apisix/prometheus/metrics
  kill -HUP $proxy_pid
NEXT
title "The proxy's log"
tail -n 20 -F "$work/proxy.log" 2>/dev/null &
tail_pid=$!
# Ends with Ctrl-C, or when the proxy ends for another reason.
wait "$proxy_pid" || fail "the proxy ended with exit code $?"
say 'The proxy has ended.'
