"""A policy is tried in the tab, beside the total norm: threshold and marks come from the real policy."""

from selenium.webdriver.common.keys import Keys

CLIP = (0, 117, 106)


def answer(tab):
    return tab.find("#clip-answer").text


def test_a_policy_is_chosen_its_threshold_and_its_clips_are_drawn_and_a_link_leads_back(tab):
    tab.open(run="every_step")
    before = tab.colours("picture").get(CLIP, 0)
    tab.find("#clip").send_keys("ZClip(z=3.0)", Keys.ENTER)
    tab.wait(lambda: "ZClip(z=3.0) would have clipped" in answer(tab), "answer")
    assert "of the steps, down to" in answer(tab)
    assert tab.colours("picture").get(CLIP, 0) > before + 50, "threshold and marks"
    assert tab.linked("clip") == "ZClip(z=3.0)"
    tab.open(run="every_step", clip="NormClip(1000.0)")
    tab.wait(lambda: "NormClip(max_norm=1000.0) would have clipped 0" in answer(tab), "answer of the link")


def test_what_cannot_be_tried_is_said_beside_the_box_and_the_picture_stays(tab):
    tab.open(run="every_step", clip="AGC()")
    tab.wait(lambda: "AGC() needs the norms of units and of their weights" in answer(tab), "refusal")
    tab.open(run="every_step", clip="alert(1)")
    tab.wait(lambda: "alert is none of NormClip" in answer(tab), "refusal")
    assert tab.data("state") == "ready"


def test_a_run_without_the_norms_of_its_steps_has_no_box(tab):
    tab.open(run="busy")
    assert not tab.find("#trial").is_displayed()
