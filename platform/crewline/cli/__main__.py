"""`python -m crewline.cli`."""

from crewline.cli import main

main()
