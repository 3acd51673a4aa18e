"""Reads every attack named on stdin in one process of limited memory; a line of JSON for each."""

import json
import resource
import sys
import warnings
from pathlib import Path

MEGABYTE = 1 << 20


def virtual() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def peak() -> int:
    """Bytes, since the last call of `restart`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def restart() -> int:
    """Forget the peak so far, and give what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident()


def main() -> None:
    warnings.simplefilter("ignore")
    # Imported first: what is measured is the reading.
    import diffusers  # noqa: F401
    from corpus import ATTACKS
    from diffusers import AutoencoderKL, DiTPipeline, UNet2DModel  # noqa: F401

    limit = virtual() + 1024 * MEGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for name, path in json.load(sys.stdin).items():
        before = restart()
        try:
            ATTACKS[name].read(Path(path))
            kinds, said = [], "was accepted"
        except BaseException as error:
            kinds, said = [kind.__name__ for kind in type(error).__mro__], str(error)
        grown = (peak() - before) / MEGABYTE
        line = {"name": name, "kinds": kinds, "said": said[:2000], "megabytes": grown}
        print("\n" + json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
