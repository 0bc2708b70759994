"""A stand-in for FedVision 0.1's Python packages, for the tests of paddle_fl: plain Python, no Paddle, the same modules, files and arguments."""
