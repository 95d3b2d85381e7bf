"""DPMesh (CVPR 2024): diffusion features and a transformer regressor. Importing this costs nothing; loading does."""
