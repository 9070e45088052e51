"""The commands: flags, and one call into the rooms."""

import os
import sys
import tempfile


def import_tensorflow() -> None:
    """Import TensorFlow without its start-up notes, which no setting of its own silences.

    They come from C++, on the file descriptor of stderr. Where the import fails they are shown.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        except BaseException:
            notes.seek(0)
            os.write(kept, notes.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
