"""CPU time of every page of help, against that of the smallest program with typer and rich.

    python -m benchmarks.help [--repeat 5]

Each page is asked for in a process of its own; CPU time is user and system time of that process, the least of the
repeats. The reference is a Typer program with one option that prints its own help: Python, typer and rich, nothing of
hmr. A page may take at most twice as long.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

from hmr_cli.app import command_paths

REFERENCE = "import typer\ndef main(name: str = typer.Option('', help='A name.')): pass\ntyper.run(main)"
LIMIT = 2.0


def cpu_seconds(command: list[str]) -> float:
    """User and system time of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    pages = {words: [sys.executable, "-m", "hmr_cli.app", *words, "--help"] for words in command_paths()}
    commands = {"typer and rich alone": [sys.executable, "-c", REFERENCE, "--help"]}
    commands |= {" ".join(("hmr", *words)): command for words, command in pages.items()}
    # Round by round, so that a busy minute hits all alike.
    rounds = [{name: cpu_seconds(command) for name, command in commands.items()} for _ in range(repeat)]
    least = {name: min(seconds[name] for seconds in rounds) for name in commands}
    reference = least["typer and rich alone"]
    for name, seconds in least.items():
        print(f"{name:28} {seconds:.3f} s  {seconds / reference:.2f} x")
    worst = max(least.values()) / reference
    print(f"worst: {worst:.2f} x (at most {LIMIT:g})")
    if worst > LIMIT:
        sys.exit(1)


if __name__ == "__main__":
    main()
