# What the CIFAR-10 launchers share; sourced by them. The defaults of config.py are the paper's settings.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# launch NAME OPTION CLASS BATCH_SIZE [FLAGS]: train the variant that OPTION ('' for ProbeGAN) selects, or resume it
launch() {
    if [ $# -lt 4 ]; then
        echo "error: give the class and the batch size, as in: ./scripts/launch_cifar_$1.sh horse 64" >&2
        exit 2
    fi
    local name=$1 option=$2 class=$3 batch_size=$4 python=python
    shift 4
    [ -x .venv/bin/python ] && python=.venv/bin/python
    local run=runs/C10_${name}_$class
    if compgen -G "$run/checkpoints/step_*.pt" > /dev/null; then
        echo "going on with $run, under the settings that it was started with"
        exec $python train.py --resume "$run" "$@"
    fi
    exec $python train.py --dataset C10 --new_class "$class" --batch_size "$batch_size" --run "$run" \
        --C_path "${C_PATH:-pretrained/cifar10_robust.safetensors}" \
        --evaluator "${EVALUATOR:-pretrained/cifar10_evaluator.safetensors}" $option "$@"
}
