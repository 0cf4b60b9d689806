"""Policies in writing: what is understood, and that nothing in it is run."""

from __future__ import annotations

import pytest

import lightning_gradguard
from lightning_gradguard import ClipPolicy
from lightning_gradguard.hindsight.notation import POLICIES, read_policy, written


def test_every_public_policy_can_be_written():
    public = [getattr(lightning_gradguard, name) for name in lightning_gradguard.__all__]
    kinds = {kind for kind in public if isinstance(kind, type) and issubclass(kind, ClipPolicy)} - {ClipPolicy}
    assert set(POLICIES.values()) == kinds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ZClip(z=3.0)", "ZClip(z=3.0)"),
        ("ZClip", "ZClip()"),
        (" NormClip(1) ", "NormClip(max_norm=1.0)"),
        ("lightning_gradguard.AutoClip(90, window=-5 and 7)", None),
        ("lightning_gradguard.AutoClip(90, max_norm=None)", "AutoClip(percentile=90.0)"),
        ("AGC(exclude=['head.*', '*.bias'])", "AGC(exclude=('head.*', '*.bias'))"),
        ("Chain([ZClip(), NormClip(1.0)])", "Chain([ZClip(), NormClip(max_norm=1.0)])"),
        ('{"class_path": "lightning_gradguard.ZClip", "init_args": {"z": 2}}', "ZClip(z=2.0)"),
        ('{"class_path": "Chain", "init_args": {"policies": [{"class_path": "ZClip"}]}}', "Chain([ZClip()])"),
    ],
)
def test_a_policy_is_read(text, expected):
    if expected is None:
        with pytest.raises(ValueError, match="is no plain value"):
            read_policy(text)
        return
    policy = read_policy(text)
    assert written(policy) == expected
    assert written(read_policy(written(policy))) == expected


BAD = {
    "open('/tmp/x', 'w')": "open is none of NormClip",
    "__import__('os').system('true')": "is none of NormClip",
    "ZClip(z=__import__('os').getpid())": "is none of NormClip",
    "ZClip(z=2+3)": "2 \\+ 3 is no plain value",
    "ZClip(**{'z': 3})": "write each argument by name",
    "ZClip(y=3)": "ZClip takes z, decay",
    "ZClip(z=-1)": "z must be greater than 0",
    "ZClip(z=3": "write one as ZClip",
    "3.0": "write one as ZClip",
    "": "write one as ZClip",
    "ClipPolicy()": "ClipPolicy is none of",
    "[ZClip()]": "write one as ZClip",
    "AutoClip(window=10000000000)": "more than 1,000,000",
    "(lambda: ZClip())()": "is none of",
    "ZClip.__init__()": "ZClip.__init__ is none of",
    '{"class_path": "os.system", "init_args": {"command": "true"}}': "os.system is none of",
    '{"init_args": {}}': "needs a class_path",
    "{": "is no policy",
    "(" * 500: "is no policy",
    "Z" * 2000: "has 2,000 characters",
    "ZClip(z='\x00')": "is no policy",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_what_is_no_policy_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match=BAD[text]) as error:
        read_policy(text)
    assert "\n" not in str(error.value)
