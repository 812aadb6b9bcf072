"""The console script, and `python -m layershard_cli`."""

import gc


def run() -> None:
    """Run the command, and end the process with its exit code."""
    # A short process leaves little behind; looking for it as often as a server does takes 10 ms.
    gc.set_threshold(200_000, 20, 20)
    from layershard_cli import main

    try:
        main.run()
    finally:
        gc.freeze()  # the end of a process takes as long: nobody needs what it would find


if __name__ == "__main__":
    run()
