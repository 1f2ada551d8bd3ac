#!/usr/bin/env bash
# ProbeGAN on CIFAR-10 at a quarter of the paper's width: ./scripts/launch_cifar_small.sh <unseen class> 32 [flags]
# The settings of `experiments.table1 --dataset C10`, four times as long. The class by label or name: 7 or horse.
# Hardware: one CPU core with AMX, 0.5 s a G step.
# Hours: 3, for 20,000 G steps; recognisable after 5,000. Measured: results/cifar10_findings.md.
source "$(dirname "$0")/cifar.sh"
launch small "--num_steps 20000 --G_ch 16 --D_ch 16 --num_D_steps 2 --G_lr 2e-4 --D_lr 4e-4 --init ortho --penalty zero \
    --gp_coeff 1 --gp_every 2 --balanced_y --one_G_pass --C_bound 0.5 --C_bound_new 1 --spread_coeff 2 \
    --ema_decay 0.999 --ema_start 500 --diffaug translation --save_every 500" "$@"
