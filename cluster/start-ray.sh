#!/usr/bin/env bash
# Start Ray on this node, in the environment that all nodes of the cluster share.
# usage: start-ray.sh ray start --head ...    or    start-ray.sh ray start --address=HEAD:PORT ...
set -euo pipefail
export PATH="$HOME/zfdist/venv/bin:$PATH"

# Nobody without the token in ~/.ray/auth_token reaches this Ray: no job, no dashboard, no client.
export RAY_AUTH_MODE=token
if [ ! -s "$HOME/.ray/auth_token" ]; then
    echo "zfdist: ~/.ray/auth_token is missing: bring the cluster up with zfdist cluster up" >&2
    exit 1
fi
# A lost host is noticed within twelve seconds: four times a second's pause and two of waiting (Ray's own: 50 and more).
export RAY_health_check_initial_delay_ms=3000
export RAY_health_check_period_ms=1000
export RAY_health_check_timeout_ms=2000
export RAY_health_check_failure_threshold=4
export AUTOSCALER_HEARTBEAT_TIMEOUT_S=20
export RAY_USAGE_STATS_ENABLED=0

# Ray 2.60's second autoscaler never contacts the workers of machines that one owns (`provider: type: local`).
if grep -qs '"type": "local"' "$HOME/ray_bootstrap_config.yaml"; then
    export RAY_enable_autoscaler_v2=0
    unset RAY_CLOUD_INSTANCE_ID RAY_NODE_TYPE_NAME
fi

ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"
ray stop >/dev/null 2>&1 || true
# Ray asks for the route to 8.8.8.8 to find this node's address, and without one takes what the host name resolves to,
# often 127.0.1.1. The way to the head is what counts.
address=
if [ -n "${RAY_HEAD_IP:-}" ]; then
    address=$(ip -4 -o route get "$RAY_HEAD_IP" | sed -n 's/.* src \([0-9.]*\).*/\1/p')
else
    mine=$(sed -n 's/.*"head_ip": "\([0-9.]*\)".*/\1/p' "$HOME/ray_bootstrap_config.yaml" 2>/dev/null || true)
    if [ -n "$mine" ] && ip -4 -o address | grep -qF " $mine/"; then address=$mine; fi
fi
# A node that is too busy to start Ray's agents in time gives up, and Ray's autoscaler never tries the same one again.
for attempt in 1 2 3; do
    if "$@" ${address:+--node-ip-address="$address"}; then break; fi
    if [ "$attempt" = 3 ]; then exit 1; fi
    echo "zfdist: Ray did not start; trying again" >&2
    ray stop --force >/dev/null 2>&1 || true
done

# A worker of a cloud is drained when its notice of interruption comes, so that runs save before it goes.
case "$(cat /sys/class/dmi/id/sys_vendor 2>/dev/null || true)" in
    Amazon*) cloud=aws ;;
    Google*) cloud=gcp ;;
    Microsoft*) cloud=azure ;;
    *) cloud= ;;
esac
if [ -n "$cloud" ] && [[ "$*" == *--address* ]]; then
    cd "$HOME/zfdist"
    PYTHONDONTWRITEBYTECODE=1 setsid nohup python -m cluster.provision.preemption --cloud "$cloud" \
        </dev/null >spot.log 2>&1 &
fi
