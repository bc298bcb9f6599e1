"""Every error that L2R2 raises on purpose.

    L2R2Error
    ├── InputError (ValueError)      what was given cannot be used
    │   ├── ImageError               a photograph
    │   ├── MetadataError            habitat, substrate, month, …
    │   └── DatasetError             a table of photographs
    ├── ConfigError                  a recipe, a flag or an environment variable
    ├── ArtifactError                a file that should be there, whole and unchanged
    ├── NotFittedError               used before it was fitted
    ├── TrainingError                a fit that went wrong (non-finite loss)
    ├── BackendError                 a runtime or another program failed
    │   └── BackendMissing           … or is not installed; the message has the command
    ├── ExportError                  a model could not be turned into another form
    │   └── ParityError              … or answers differently there
    └── ServingError
        ├── Overloaded               no room for this request now
        └── DeadlinePassed           the caller has stopped waiting

A message says what, what was got, what was expected, and what to do. They are caught at the edges only: the command
line turns one into a line and an exit code, the service into a gRPC status.
"""


class L2R2Error(Exception):
    """The root; catching it catches every error above."""


class InputError(L2R2Error, ValueError):
    """What was given cannot be used."""


class ImageError(InputError):
    """The bytes are no photograph that can be recognized."""


class MetadataError(InputError):
    """A metadata value is outside its range."""


class DatasetError(InputError):
    """A table of photographs breaks a rule."""


class ConfigError(L2R2Error):
    """A setting is unknown or outside its range."""


class ArtifactError(L2R2Error):
    """A file is missing, truncated, changed or of a newer version."""


class NotFittedError(L2R2Error):
    """Used before it was fitted."""


class TrainingError(L2R2Error):
    """A fit went wrong."""


class BackendError(L2R2Error):
    """A runtime or another program failed."""


class BackendMissing(BackendError):  # noqa: N818  the state, not the event
    """A package or program is not installed."""


class ExportError(L2R2Error):
    """A model could not be turned into another form."""


class ParityError(ExportError):
    """An exported model answers differently from the one it came from."""


class ServingError(L2R2Error):
    """The service cannot answer now."""


class Overloaded(ServingError):  # noqa: N818
    """No room for this request now."""


class DeadlinePassed(ServingError):  # noqa: N818
    """The caller has stopped waiting."""
