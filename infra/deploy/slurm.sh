#!/bin/bash
# One run of a pipeline on an allocation of Slurm: starts Ray's head on the first node and a worker on each other one,
# then the run, and ends them with it. From a folder that all nodes see, with omniloom's environment active:
#     sbatch infra/deploy/slurm.sh cluster data=/shared/corpus storage=/shared/runs
# After a preemption, a time limit or a dead node the same command goes on from the last checkpoint.
#SBATCH --job-name=omniloom
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=72
#SBATCH --gpus-per-node=8
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=omniloom-%j.log
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: sbatch ${0##*/} CONFIG [KEY=VALUE ...]" >&2
    exit 2
fi
port=${RAY_PORT:-6379}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# This script runs on the first node. Where that has several networks, name its address on the fast one.
head=${RAY_HEAD_ADDRESS:-$(hostname -I | cut -d ' ' -f 1)}

# Whoever has the token can run code on the cluster: one a job, readable by its owner alone, and in no command line.
umask 077
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$PWD/.ray-token-$SLURM_JOB_ID RAY_USAGE_STATS_ENABLED=0
od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH"

steps=()
finish() {
    trap - EXIT
    [ ${#steps[@]} -eq 0 ] || kill "${steps[@]}" 2>/dev/null || true
    wait
    rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap finish EXIT

# The dashboard listens on the head's own loopback: reach it through ssh.
start=(ray start --block --disable-usage-stats --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "${SLURM_GPUS_ON_NODE:-0}")
srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" --overlap \
    "${start[@]}" --head --node-ip-address "$head" --port "$port" --dashboard-host 127.0.0.1 &
steps+=($!)
for ((second = 0; ; second++)); do
    (exec 3<> "/dev/tcp/$head/$port") 2>/dev/null && break
    kill -0 "${steps[0]}" 2>/dev/null || { echo "Ray's head did not start on ${nodes[0]}" >&2; exit 1; }
    [ "$second" -lt 120 ] || { echo "Ray's head does not answer at $head:$port" >&2; exit 1; }
    sleep 1
done
for node in "${nodes[@]:1}"; do
    srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap "${start[@]}" --address "$head:$port" &
    steps+=($!)
done

# Nodes that have not joined yet would be missing when the run asks for room.
for ((second = 0; ; second++)); do
    joined=$(ray list nodes --address "$head:$port" --filter state=ALIVE --limit 10000 --format json | grep -c '"node_id"' || true)
    [ "$joined" -lt ${#nodes[@]} ] || break
    [ "$second" -lt 60 ] || { echo "only $joined of ${#nodes[@]} nodes joined the cluster" >&2; exit 1; }
    sleep 5
done

# Slurm's warning before the time limit or a preemption ends the run as Ctrl-C does: with a checkpoint and its records.
omniloom run "$@" cluster.address="$head:$port" &
run=$!
trap 'kill -TERM "$run" 2>/dev/null || true' TERM INT
code=0
wait "$run" || code=$?
while kill -0 "$run" 2>/dev/null; do
    code=0
    wait "$run" || code=$?
done
exit "$code"
