#!/usr/bin/env bash
# Usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500 MAX_RESTARTS=0]
#        dist_train.sh CONFIG GPUS [OPTIONS]
set -euo pipefail
CONFIG=$1
GPUS=$2

PORT=${PORT:-29500}
if [ "${NODE_RANK:-0}" = 0 ] && (: <"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null; then
    echo "error: port $PORT is in use; set PORT to a free one" >&2
    exit 1
fi

# To start processes again, torchrun needs another rendezvous than the default one, and a new store each
# time: the old one keeps the addresses of processes that have died.
RENDEZVOUS=(--node_rank="${NODE_RANK:-0}" --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="$PORT")
if [ "${MAX_RESTARTS:-0}" != 0 ]; then
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    RENDEZVOUS=(--rdzv_backend=c10d --rdzv_endpoint="${MASTER_ADDR:-127.0.0.1}:$PORT"
        --max_restarts="$MAX_RESTARTS")
fi
# exec: signals reach torchrun.
exec torchrun \
    --nnodes="${NNODES:-1}" \
    "${RENDEZVOUS[@]}" \
    --nproc_per_node="$GPUS" \
    "$(dirname "$0")/train.py" "$CONFIG" --launcher pytorch "${@:3}"
