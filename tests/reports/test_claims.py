"""The post's sentences, one test each; `twosides verify` prints the same table."""

import pytest

from twosides.reports.claims import CLAIMS, Claim, verify


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text[:60])
def test_claim(claim):
    result = claim.check()
    assert result.passed, str(result)


def test_every_claim_has_a_bound_and_can_fail():
    for claim in CLAIMS:
        assert claim.at_most < float("inf") or claim.at_least > -float("inf")
    assert not Claim("one is small", lambda: 1.0, at_most=1e-3).check().passed
    assert not Claim("small is large", lambda: 1e-9, at_least=1e-3).check().passed
    assert not Claim("undefined", lambda: float("nan"), at_most=1.0).check().passed


def test_results_are_told_in_order(monkeypatch):
    monkeypatch.setattr("twosides.reports.claims.CLAIMS", CLAIMS[:3])
    told = []
    assert [r.claim for r in verify(lambda n, r: told.append(n))] == CLAIMS[:3]
    assert told == [1, 2, 3]
