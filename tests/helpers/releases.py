"""Which releases of other libraries are installed, for what the older of the admitted ones cannot do."""

from importlib.metadata import version

from packaging.version import Version


def before(library, release):
    """Whether an installed library is older than a release."""
    return Version(version(library)) < Version(release)
