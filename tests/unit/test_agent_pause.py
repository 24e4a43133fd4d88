from __future__ import annotations

from beamhub.agent.pause import Pause
from beamhub.agent.service import UnavailableError


def test_once_the_staff_let_files_begin_nobody_hears_of_the_pause_any_more() -> None:
    pause = Pause()
    pause.hold("paused by sam: sample change")
    pause.begin(UnavailableError("Uploads of mx-1 are paused by sam: sample change", expected=True))
    pause.hold("paused by sam: sample change")
    assert pause.reason
    pause.hold("")
    assert (pause.held, pause.reason) == ("", "")
