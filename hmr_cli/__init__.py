"""The command line of hmr. Typer and rich live here and nowhere else."""
