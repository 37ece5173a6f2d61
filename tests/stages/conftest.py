"""What the stages' tests share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Copies of remote files go into a folder of the session's, not into the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNILOOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def visual(tmp_path_factory):
    """A small visual tokenizer's artifact."""
    import corpora

    return corpora.tokenizer(tmp_path_factory.mktemp("visual") / "joint")
