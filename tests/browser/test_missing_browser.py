"""Without a browser the tests of the tab fail, and say how to get one."""

import pytest

from tests.browser.conftest import browser_binaries


def test_a_missing_browser_is_a_failure_with_the_command_that_cures_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.fail.Exception, match=r"chromium and chromedriver not found.*apt-get install chromium"):
        browser_binaries()
