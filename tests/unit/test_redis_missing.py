"""The extra `redis` is not installed: said with the remedy."""

from __future__ import annotations

import subprocess
import sys


def test_the_package_that_is_missing_is_named_with_the_command_that_installs_it() -> None:
    script = (
        "import sys; sys.modules['redis'] = None\n"
        "from crewline.errors import StoreError\n"
        "try:\n"
        "    import crewline_memory.redis\n"
        "except StoreError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)

    assert done.stdout == "the Redis store needs the package redis; install it: pip install 'crewline[redis]'\n"


def test_importing_the_stores_does_not_load_it() -> None:
    script = "import sys, crewline_memory; print('redis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)

    assert done.stdout == "False\n"
