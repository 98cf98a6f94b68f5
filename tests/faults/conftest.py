"""What several fault tests compare with: a job that nothing disturbed."""

import pytest
from helpers_command import QUICK, Straight, lengths, make_demo_input, run


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """The whole job on a small input of the demonstration's birds."""
    folder = tmp_path_factory.mktemp("straight")
    arguments = ("run", f"--input={make_demo_input(folder / 'input')}", *QUICK)
    command = run([*arguments, f"--output={folder / 'output'}"])
    assert command.process.returncode == 0, command.text()
    return Straight(folder / "input", folder / "output", arguments, lengths(command))
