#!/usr/bin/env bash
# Usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500]
#        dist_test.sh CONFIG CHECKPOINT GPUS [OPTIONS]
set -euo pipefail
CONFIG=$1
CHECKPOINT=$2
GPUS=$3

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
    "$(dirname "$0")/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "${@:4}"
