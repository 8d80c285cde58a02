"""python -m hla.convert: the stages of a conversion, one after the other or those that are named."""

import sys
from importlib import import_module
from typing import Optional, Sequence

from .job import Job
from .options import Options, from_command_line


def convert(options: Options) -> None:
    """Runs the stages; each goes on where an earlier call was cut off."""
    job = Job(options)
    for stage in options.stages:
        import_module(f"{__package__}.{stage}").run(job)


def _quiet() -> None:
    """Advice and progress bars of the libraries stay out of the log."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def main(arguments: Optional[Sequence[str]] = None) -> int:
    options = from_command_line(arguments)
    _quiet()
    try:
        convert(options)
    except (ValueError, OSError) as error:
        print(f"hla.convert: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
