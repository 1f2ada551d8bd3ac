#!/usr/bin/env bash
# The NAIVE rival on CIFAR-10: ./scripts/launch_cifar_naive.sh <unseen class> <batch size> [flags]
# Hardware: one GPU. Arithmetic: 8.3 TFLOP a G step at batch 64, the classifier's apart; 100,000 G steps.
# Hours: not measured yet.
# Expected, from the paper: intra-FID 76.0 for horse and 84.2 for truck with an L2-robust ResNet-50.
source "$(dirname "$0")/cifar.sh"
launch naive "--method naive" "$@"
