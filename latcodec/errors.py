"""Errors that the command line prints as one line: what happened, where (file, field, offset), what to do."""


class LatcodecError(Exception):
    """The base of every error that this package raises on purpose."""


class FormatError(LatcodecError):
    """The bytes are not a latcodec file, or are damaged: bad magic, field, length or checksum."""


class VersionError(LatcodecError):
    """The file is sound but needs a newer latcodec: format version, backend or a critical section is unknown."""


class WeightsError(LatcodecError):
    """The weights a file or an option names are missing, damaged or of another kind."""


class DriftError(LatcodecError):
    """File and weights are right, yet the decoded integers differ: this platform computed something else."""


class ImageError(LatcodecError):
    """A picture file cannot be read or written, or is over a limit."""


class TargetError(LatcodecError):
    """No file of a picture has the requested bits per pixel, PSNR or size; the nearest file was written."""


class OptionError(LatcodecError):
    """Options that contradict each other or are out of range."""
