"""Data that the cluster tests share."""

from pathlib import Path

import pytest

from minga.data.digits import prepare_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's handwritten digits as PNG files: 1442 to train on, 355 to validate on."""
    return prepare_digits(tmp_path_factory.mktemp("data") / "digits")
