"""One line for who can mend the input, wherever it is met."""

from cupre_d2.errors import ConfigError


def test_a_notebook_shows_one_line() -> None:
    """IPython prints what this method of an exception returns in place of a stack."""
    assert ConfigError("SEED 'x': expected a number")._render_traceback_() == ["ConfigError: SEED 'x': expected a number"]
