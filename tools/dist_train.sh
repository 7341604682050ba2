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

# exec: signals reach torchrun.
exec torchrun \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="$PORT" \
    --nproc_per_node="$GPUS" \
    --max-restarts="${MAX_RESTARTS:-0}" \
    "$(dirname "$0")/train.py" "$CONFIG" --launcher pytorch "${@:3}"
