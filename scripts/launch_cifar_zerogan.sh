#!/usr/bin/env bash
# ProbeGAN on CIFAR-10 with the paper's settings: ./scripts/launch_cifar_zerogan.sh <unseen class> <batch size> [flags]
# The class by label or name: 7 or horse. C_PATH names the probed classifier.
# Hardware: one GPU. Arithmetic: 8.3 TFLOP a G step at batch 64, the classifier's apart; 100,000 G steps.
# Hours: not measured yet.
# Expected, from the paper: intra-FID 45.4 for horse and 68.3 for truck with an L2-robust ResNet-50.
source "$(dirname "$0")/cifar.sh"
launch zerogan '' "$@"
