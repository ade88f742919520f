#!/bin/sh
# Starts an agent and a gateway with a demo sprite and stops them on Ctrl-C. What it started can be
# driven from scripts: .run/env holds shell assignments.
set -eu
cd "$(dirname "$0")/.."

port=${PORT:-8080}
tls_port=${TLS_PORT:-8443}
admin_port=${ADMIN_PORT:-9090}
idle=${IDLE:-30}
suspend=${SUSPEND:-60}
driver=${DRIVER:-process}
case $driver in
process)
    state_name=state
    asleep="frozen; after ${COLD:-600} s more only its disk is left"
    default_cold=600
    ;;
qemu)
    state_name='state-qemu'
    asleep="its CPUs stopped; after ${SUSPEND:-60} s more its memory is on disk and the RAM given back"
    # A month: what lies on disk costs little.
    default_cold=2592000
    scripts/deps.sh vm minimal
    target/release/vmm-agent image build --image minimal --images-dir target/images \
        --runtime "target/$(rustc -vV | sed -n 's/^host: //p')/release/runtime"
    ;;
*) echo "make run: DRIVER=$driver is unknown; there are process and qemu" >&2 && exit 1 ;;
esac
cold=${COLD:-$default_cold}
domain=sprites.localhost
target=$(rustc -vV | sed -n 's/^host: //p')

fail() {
    echo "make run: $*" >&2
    exit 1
}
seconds() { # NAME VALUE -> milliseconds
    awk -v name="$1" -v value="$2" 'BEGIN {
        if (value !~ /^[0-9]+(\.[0-9]+)?$/) { print name "=" value " is not a number of seconds" > "/dev/stderr"; exit 1 }
        printf "%.0f", value * 1000 }'
}
idle_ms=$(seconds IDLE "$idle")
suspend_ms=$(seconds SUSPEND "$suspend")
cold_ms=$(seconds COLD "$cold")
for number in "$port" "$tls_port" "$admin_port"; do
    case $number in '' | *[!0-9]*) fail "PORT=$number is not a port" ;; esac
done

umask 077
mkdir -p .run
run=$(pwd)/.run
# A Unix socket's path has at most 107 bytes; a deep checkout keeps its state elsewhere.
state=$run/$state_name
if [ ${#state} -gt 45 ]; then
    state=${TMPDIR:-/tmp}/sprites-$(id -u)-$(printf %s "$run" | cksum | cut -d' ' -f1)-$driver
fi
certs/mint.sh "$run/certs" "$domain" >/dev/null

cat >"$run/agent.toml" <<EOF
state_dir = "$state"
driver = "$driver"
url_template = "http://{label}.$domain:$port"
[lifecycle]
idle_timeout_ms = $idle_ms
suspend_after_ms = $suspend_ms
cold_after_ms = $cold_ms
[process]
runtime = "$(pwd)/target/$target/release/runtime"
[qemu]
images_dir = "$(pwd)/target/images"
image = "minimal"
memory_mib = 512
EOF
cat >"$run/gateway.toml" <<EOF
domain = "$domain"
[listen]
http = ["127.0.0.1:$port", "[::1]:$port"]
https = ["127.0.0.1:$tls_port", "[::1]:$tls_port"]
admin = "127.0.0.1:$admin_port"
[public]
scheme = "http"
port = $port
[tls]
certificate = "$run/certs/leaf.pem"
key = "$run/certs/leaf.key"
[agent]
socket = "$state/agent.sock"
EOF

agent='' gateway=''
stop() {
    trap '' INT TERM
    [ -z "$gateway" ] || { kill -TERM "$gateway" 2>/dev/null && wait "$gateway" || true; }
    [ -z "$agent" ] || { kill -TERM "$agent" 2>/dev/null && wait "$agent" || true; }
}
trap 'stop' EXIT
trap 'echo; echo "Stopping..."; exit 0' INT TERM

alive() { # PID NAME
    kill -0 "$1" 2>/dev/null || {
        tail -n 15 "$run/$2.log" >&2
        fail "the $2 did not start; its log is $run/$2.log"
    }
}
within() { # SECONDS PID NAME COMMAND...
    tries=$(($1 * 20)) pid=$2 name=$3
    shift 3
    until "$@" >/dev/null 2>&1; do
        alive "$pid" "$name"
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || fail "the $name is not ready; its log is $run/$name.log"
        sleep 0.05
    done
}

# In sessions of their own, so that Ctrl-C reaches this script alone and the gateway can drain before
# the agent stops the sprites.
setsid target/release/vmm-agent serve --config "$run/agent.toml" >"$run/agent.log" 2>&1 </dev/null &
agent=$!
within 60 "$agent" agent test -S "$state/agent.sock"
within 10 "$agent" agent curl -fsS --unix-socket "$state/agent.sock" http://agent/readyz
setsid target/release/gateway --config "$run/gateway.toml" >"$run/gateway.log" 2>&1 </dev/null &
gateway=$!

api=http://127.0.0.1:$port
within 20 "$gateway" gateway curl -fsS "http://127.0.0.1:$admin_port/readyz"

token=
if [ -f "$run/env" ]; then
    token=$(sed -n "s/^SPRITES_TOKEN='\(.*\)'$/\1/p" "$run/env")
fi
call() { # METHOD PATH [BODY]
    curl -sS -o "$run/answer" -w '%{http_code}' -X "$1" "$api$2" -H "Authorization: Bearer $token" \
        ${3:+-H 'Content-Type: application/json' -d "$3"}
}
[ -n "$token" ] && [ "$(call GET /v1/sprites)" = 200 ] ||
    token=$(target/release/vmm-agent token mint --state-dir "$state" --org demo --description "make run" 2>/dev/null)

case $(call POST /v1/sprites '{"name":"hello","url_settings":{"auth":"public"}}') in
201 | 409) ;;
*) fail "could not create the demo sprite: $(cat "$run/answer")" ;;
esac
case $(call PUT '/v1/sprites/hello/services/web?duration=0s' \
    '{"cmd":"/.sprite/bin/runtime","args":["hello","8080"],"http_port":8080}') in
200) ;;
*) fail "could not start the demo's web server: $(cat "$run/answer")" ;;
esac
call GET /v1/sprites/hello >/dev/null
url=$(sed -n 's/.*"url":"\([^"]*\)".*/\1/p' "$run/answer")
rm -f "$run/answer"
[ -n "$url" ] || fail "the demo sprite has no URL"

cat >"$run/env" <<EOF
SPRITES_API_URL='$api'
SPRITES_TOKEN='$token'
SPRITE_DOMAIN='$domain'
DEMO_URL='$url'
EOF

cat <<EOF

A sprite is up, and its web server answers at

    $url

Open it in a browser, or: curl $url
Leave it alone for $idle s and it sleeps ($asleep). Load the page
again and it answers, with its visits still counted.

Try
    . .run/env; export SPRITES_API_URL SPRITES_TOKEN
    target/release/sprite exec -s hello "uname -a; ps aux"      run something in it; \`console\` for a shell
    curl -H "Authorization: Bearer \$SPRITES_TOKEN" \$SPRITES_API_URL/v1/sprites/hello        its state
    curl -H "Authorization: Bearer \$SPRITES_TOKEN" \$SPRITES_API_URL/v1/sprites/hello/why    why it is awake
    curl -H "Authorization: Bearer \$SPRITES_TOKEN" \$SPRITES_API_URL/v1/sprites -d '{"name":"mine"}'
    curl --cacert .run/certs/ca.pem $(printf %s "$url" | sed "s/^http:/https:/; s/:$port/:$tls_port/")

API    $api (and https on port $tls_port)
Token  $token
Logs   .run/gateway.log, .run/agent.log; metrics on http://127.0.0.1:$admin_port/metrics

Ctrl-C stops everything.
EOF
# Whichever ends first ends the other.
while kill -0 "$agent" 2>/dev/null && kill -0 "$gateway" 2>/dev/null; do
    sleep 1 &
    wait $! || true
done
echo "A program has ended; the end of the logs:" >&2
tail -n 5 "$run/agent.log" "$run/gateway.log" >&2
exit 1
