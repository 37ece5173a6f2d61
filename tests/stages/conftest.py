"""What the stages' tests share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Copies of remote files go into a folder of the session's, not into the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNILOOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
