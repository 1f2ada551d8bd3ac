"""The rivals of ProbeGAN, one in each file: trained by train.py --method NAME, drawn and measured as ProbeGAN is."""
