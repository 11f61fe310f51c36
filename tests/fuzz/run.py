"""Coverage-guided fuzzing with atheris: `python -m fuzz.run SECONDS [TARGET…]` (make fuzz).

Each target runs in a process of its own for its share of the time. It starts from the inputs in
corpus/TARGET, and what reaches new code is kept there. An input that breaks a target is written to
corpus/TARGET too, under the name `found-…`: tests/unit/fuzz runs every input of the corpus, so it is a
test from then on.
"""

import subprocess
import sys
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
LENGTH_MAX = 4096


def fuzz(name: str, seconds: int) -> None:
    """Fuzzes one target in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["socks_tunnel"]):
        from fuzz.targets import TARGETS
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={seconds}",
            f"-max_len={LENGTH_MAX}",
            f"-artifact_prefix={folder}/found-",
            "-timeout=5",
            "-print_final_stats=1",
            "-verbosity=0",
            str(folder),
        ],
        TARGETS[name],
    )
    atheris.Fuzz()


def main(seconds: int, names: list[str]) -> int:
    """Fuzzes all targets one after another; returns how many broke."""
    from fuzz.targets import TARGETS

    names = names or list(TARGETS)
    broken = []
    for name in names:
        share = max(seconds // len(names), 1)
        print(f"{name}: {share} s", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "fuzz.run", "--one", name, str(share)],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        stats = [line for line in done.stdout.splitlines() if line.startswith("stat::")]
        print(*(line.removeprefix("stat::") for line in stats[:2]), sep="\n")
        if done.returncode != 0:
            print(done.stdout)
            broken.append(name)
    print(f"{len(names) - len(broken)} passed, {len(broken)} failed")
    return len(broken)


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        fuzz(sys.argv[2], int(sys.argv[3]))
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
