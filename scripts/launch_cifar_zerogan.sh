#!/usr/bin/env bash
# ProbeGAN on CIFAR-10 with the paper's settings: ./scripts/launch_cifar_zerogan.sh <unseen class> <batch size> [flags]
# The class by label or name: 7 or horse. One GPU; C_PATH names the probed classifier.
# Expected, from the paper: intra-FID 45.4 for horse and 68.3 for truck with an L2-robust ResNet-50.
source "$(dirname "$0")/cifar.sh"
launch zerogan '' "$@"
