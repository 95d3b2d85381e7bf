"""PARE (ICCV 2021) and ProHMR (ICCV 2021) as far as ScoreHMR needs them: the image features it is conditioned on."""
