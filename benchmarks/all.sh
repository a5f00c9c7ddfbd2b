#!/usr/bin/env bash
# Every result that needs no GPU, anew and from nothing, as `make results` runs it. Each part that ended is left out the
# next time; `rm -r benchmarks/work` begins afresh. Days on two cores: `oasis-slow`, `people` and `families` take hours
# each. Peers that are not installed are rows that say so.
#
#   benchmarks/all.sh [DATA]        DATA: the folder below which the manifests' paths lie, else $STEPWARP_DATA
set -uo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] && export STEPWARP_DATA=$1
. benchmarks/parts.sh all
python=.venv/bin/python

ours=stepwarp-affine,stepwarp-fast,stepwarp-default,stepwarp-best
networks=stepwarp-network,stepwarp-labels,stepwarp-labels-default,stepwarp-labels-best
ants=ants-affine,ants-syn,ants-syn-quick
peers=simpleitk-demons,elastix,niftyreg,convexadam,fireants

# compare FOLDER MANIFEST METHODS [...]: run a benchmark, and put what is committed of it where it lies.
compare() {
    local folder=$1 manifest=$2 methods=$3
    shift 3
    .venv/bin/stepwarp benchmark "$manifest" --methods "$methods" --threads 2 --device cpu \
        --out "benchmarks/work/$folder" "$@" || return
    mkdir -p "benchmarks/results/$folder"
    (cd "benchmarks/work/$folder" && cp -r cases cases.csv summary.json table.md environment.json index.html \
        "../../results/$folder/")
}

make .venv/ready-dev kernels || exit 1
part oasis compare oasis oasis "identity,centre-of-mass,$ants,$ours,$networks" --split validation
part oasis-slow compare oasis oasis ants-syn-best --split validation
part people compare people oasis_people "identity,$ants,$ours,$networks,$peers"
part templates compare templates templates "identity,centre-of-mass,$ants,ants-syn-best,$ours,$networks,$peers"
part chest compare chest chest "identity,$ants,ants-syn-best,$ours,stepwarp-ct,$peers"
part demo-pair .venv/bin/stepwarp manifest make demo --out benchmarks/work/demo-pair/demo.json --force
part demo compare demo benchmarks/work/demo-pair/demo.json "identity,centre-of-mass,$ants,$ours,$networks" \
    --data benchmarks/work/demo-pair
for script in deformable_models invariances presets_in_order contrasts several_contrasts heads structures_as_guide \
    when_weights verdicts network_time scaling half_millimetre kernels training_throughput step_ablation families \
    mnist_peer mnist_stability fuzz soak model_cards; do
    part "$script" $python "benchmarks/$script.py"
done
part mnist .venv/bin/stepwarp mnist all --out benchmarks/work/mnist
part figures $python benchmarks/figures.py
part readme $python benchmarks/readme.py
conclude
