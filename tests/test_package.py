"""The package as it is installed."""

from importlib.metadata import entry_points, version

import segue


def test_version_of_the_distribution_is_that_of_the_module():
    assert version("segue") == segue.__version__


def test_the_command_is_installed():
    (command,) = entry_points(group="console_scripts", name="segue")
    assert command.value == "segue.cli.main:main"
