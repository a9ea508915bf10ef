#!/usr/bin/env bash
# Two nodes on one machine: a torchrun in each of two network namespaces that see each other through a veth pair alone.
#
#     sudo bench/two_nodes.sh OUT        # the toy world's stage 1, two ranks a node, then the same on one process
#
# Prints the last line of both logs; the figures must agree to rounding.  Needs root and iproute2.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1 python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 GLOO_SOCKET_IFNAME=link0

cleanup() { for node in 0 1; do ip netns del "std-node$node" 2>/dev/null || true; done; }
trap cleanup EXIT
cleanup
for node in 0 1; do ip netns add "std-node$node"; done
ip link add link0 netns std-node0 type veth peer name link0 netns std-node1
for node in 0 1; do
    ip -n "std-node$node" address add "10.77.0.$((node + 1))/24" dev link0
    ip -n "std-node$node" link set link0 up
    ip -n "std-node$node" link set lo up
done

mkdir -p "$out"
$python prepare.py toy --out "$out/toy"
stage1=(stage1_grpo.py --model "$out/toy/student" --problems "$out/toy/train.jsonl" --max-steps 4 --steps-per-rollout 2
        --prompts-per-step 15 --samples-per-prompt 4 --max-new-tokens 16 --micro-batch-size 16 --lr 1e-4)
for node in 0 1; do
    ip netns exec "std-node$node" $python -m torch.distributed.run --nnodes=2 --nproc_per_node=2 --node_rank="$node" \
        --master_addr=10.77.0.1 --master_port=29500 "${stage1[@]}" --out "$out/two_nodes" >"$out/node$node.log" 2>&1 &
done
wait
$python "${stage1[@]}" --out "$out/one_process" >"$out/one_process.log" 2>&1
for run in two_nodes one_process; do
    tail -1 "$out/$run/metrics.jsonl" | $python -c "
import json, sys
row = json.loads(sys.stdin.read())
print(f'$run:', ', '.join(f'{key} {row[key]:.6g}' for key in ('loss', 'grad_norm', 'reward_mean', 'num_tokens')))"
done
